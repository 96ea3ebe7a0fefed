"""Evaluation with real codecs: ``modes``, ``sweep`` (with ``workers``, ``stopwatch``), ``points``, ``cache``."""
