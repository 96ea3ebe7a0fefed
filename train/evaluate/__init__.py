"""Evaluation: ``modes``, ``sweep`` with ``workers``, ``stopwatch`` and ``manifest``, ``points``, ``cache``."""
