"""Experiments: training, evaluation, reports."""
