"""Evaluation: ``modes`` and ``receivers``; ``sweep`` with ``checks``, ``rows``, ``networks``, ``workers`` or
``cluster``, ``cost``, ``quarantine``, ``stopwatch`` and ``manifest``; ``points``, ``pictures``, ``cache``."""
