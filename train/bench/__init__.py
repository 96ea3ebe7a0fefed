"""Benchmarks against peers in the same run: ``proxy``, ``jpeg_rate``, ``postprocessor``."""
