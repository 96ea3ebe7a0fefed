"""Training: ``config`` (presets), ``data``, ``step`` (the loss), ``loop``, ``checkpoints``."""
