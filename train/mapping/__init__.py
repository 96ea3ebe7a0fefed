"""Importance maps of clips of any length: planned, computed in parts that resume, merged, written for encoders."""
