"""Keeps freed memory in the process: on CPU, XLA's buffers would otherwise go back to the system at every step."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_memory() -> None:
    """Tells glibc to serve large blocks from its heap and not to shrink it; elsewhere nothing happens.

    A block over 32 MB is otherwise mapped and unmapped each time, and its page faults can take half of a training step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        libc.mallopt(_M_TOP_PAD, 1 << 28)
