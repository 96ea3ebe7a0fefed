"""Neural wrappers around standard codecs, in JAX. Read `jaxwrap.pipeline` first.

Frames: ``arrays``, ``samples``, ``colour``. Networks: ``wrappers``, ``parameters``. What matters: ``importance``. How
bits are spent: ``methods``. Who spends them: ``codec``. What came of it: ``metrics``. Codecs are in `jaxwrap.codecs`,
training and evaluation in `jaxwrap.train`.
"""

from jaxwrap import importance, methods
from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.codec import Codec, EncodeRequest, EncodeResult, Weights
from jaxwrap.pipeline import Coded, Sandwich

__all__ = [
    "Codec",
    "Coded",
    "EncodeRequest",
    "EncodeResult",
    "Frame",
    "Sandwich",
    "Weights",
    "Yuv400",
    "Yuv420",
    "importance",
    "methods",
]
