"""Evaluation with real codecs: ``modes``, ``sweep``, ``workers``, ``stopwatch``, ``manifest``, ``points``, ``cache``."""
