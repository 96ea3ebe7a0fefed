"""What a training run is: one frozen dataclass, its presets, and ``key=value`` overrides."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Literal

from jaxwrap.wrappers.resample import RATIOS


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """A training run of one wrapper (SNW 3.3–3.4).

    The loss is D + λ R: D the mean of the three planes' mean squared errors (SNW: "MSE in the YUV space"), in squared
    8-bit sample units; R in bits per pixel of the bottleneck, of the proxy. The units are ours: SNW does not state its
    own.
    """

    data: str = ""
    """Pictures, clips or folders of them, separated by commas. Empty: the demo's fine-tuning pictures of
    scikit-image."""
    validation: str = ""
    """The same, never trained on. Empty: every sixteenth picture of ``data`` is held out."""
    mode: Literal["pair", "post"] = "pair"
    """``pair``: pre- and post-processor; ``post``: post-processor behind a bilinear down-sampler."""
    ratio: str = "1/2"
    """Bottleneck size over picture size: 1, 2/3, 1/2 or 1/4."""
    crop: int = 128
    """Side of the square training crops, in luma pixels. SNW: 256; smaller crops see more pictures per second on a
    CPU."""
    batch: int = 8
    """Crops per step, over all devices."""
    steps: int = 2000
    learning_rate: float = 2e-3
    """Peak of Adam's cosine schedule (warm-up: 2 % of the steps). Networks this small train stably far above the usual
    1e-4."""
    lmbda: float = 16.0
    """λ. SNW 3.4 has the same number. Luma's error counts a third in D, so a bit is worth 48 of it, as to an encoder at
    QP 31 (0.57 · 2^((QP − 12) / 3)). There, and not at high rates, a smaller picture can win."""
    bit_depth: int = 10
    """Of the bottleneck. SNW 3.4 found 10 best for 8- and 10-bit sources alike."""
    initial_step_size: float = 16.0
    """Quantisation step of the proxy at the start, in 8-bit sample units; learnt from there (QP 30 has a step of
    20)."""
    step_jitter: float = 2.0
    """Each picture's step is the learnt one times 2^u, u uniform in ± this many octaves (6 QP each), so that one
    wrapper serves a range of QPs. 0 is SNW's own form."""
    rate_refresh: int = 8
    """The rate's scale is counted exactly every so many steps (it moves by 1–7 % between batches)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters and the proxy stay in float32."""
    init: str = ""
    """Wrapper file to start from; empty: from scratch."""
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 200
    validate_every: int = 500

    def __post_init__(self) -> None:
        problems = []
        if self.mode not in ("pair", "post"):
            problems.append(f"mode={self.mode!r}: wanted pair or post")
        try:
            if Fraction(self.ratio) not in RATIOS:
                raise ValueError
        except (ValueError, ZeroDivisionError):
            problems.append(f"ratio={self.ratio!r}: wanted one of {', '.join(map(str, RATIOS))}")
        if self.crop < 48 or (self.crop % 48 and self.crop % 32):
            problems.append(f"crop={self.crop}: wanted a multiple of 32 (of 48 for ratio 2/3), at least 48")
        if self.bit_depth not in (8, 10):
            problems.append(f"bit_depth={self.bit_depth}: wanted 8 or 10")
        if self.dtype not in ("float32", "bfloat16"):
            problems.append(f"dtype={self.dtype!r}: wanted float32 or bfloat16")
        for name in ("batch", "steps", "rate_refresh", "log_every", "checkpoint_every", "validate_every"):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)}: wanted at least 1")
        for name in ("learning_rate", "lmbda", "initial_step_size"):
            if not getattr(self, name) > 0:
                problems.append(f"{name}={getattr(self, name)}: wanted a positive number")
        if self.step_jitter < 0:
            problems.append(f"step_jitter={self.step_jitter}: wanted 0 or more")
        if problems:
            raise ValueError("this training configuration cannot run:\n  " + "\n  ".join(problems))


PRESETS: dict[str, FitConfig] = {
    # jaxwrap train smoke
    #   Under a minute on two CPU cores, no data needed. Expect the validation loss to fall by several per cent.
    "smoke": FitConfig(
        steps=60, crop=96, batch=4, learning_rate=1e-3, checkpoint_every=20, validate_every=30, log_every=5
    ),
    # jaxwrap train pilot data=coco/train2017              (the shipped pair-1of2)
    # jaxwrap train pilot data=coco/train2017 mode=post    (the shipped post-1of2)
    #   About 15 and 9 minutes alone on two CPU cores with the 128 pictures of the test data. Expect validation losses
    #   of 98.9 (29.03 dB PSNR-YUV, step 5500) and 101.8 (28.75 dB); the linear start has 112.9 (28.16 dB) and 119.7
    #   (27.37 dB).
    "pilot": FitConfig(steps=8000, checkpoint_every=500),
    # jaxwrap train full data=CLIC/train [ratio=…] [mode=post]
    #   SNW's own sizes, for a GPU: 200 000 steps of 32 crops of 256². Not run yet: no time or number is known.
    "full": FitConfig(
        steps=200_000,
        crop=256,
        batch=32,
        learning_rate=1e-3,
        checkpoint_every=2000,
        validate_every=5000,
        log_every=100,
    ),
}


_BOOLEANS = {"true": True, "false": False}

Config = typing.TypeVar("Config")


def preset(name: str, *, more: Iterable[str] = ()) -> FitConfig:
    """The named preset. Raises `ValueError` listing the valid names, and those of ``more`` kinds of runs."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; valid: {', '.join((*PRESETS, *more))}")
    return PRESETS[name]


def override(config: Config, assignments: list[str]) -> Config:
    """Applies ``key=value`` words to a configuration of any kind of run. Raises `ValueError` naming the unknown key or
    the value that does not fit its type."""
    types = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for word in assignments:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"override {word!r} was given; wanted KEY=VALUE, for example steps=500")
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"unknown key {name!r}{hint}; valid: {', '.join(types)}")
        if types[name] is bool:
            if value.lower() not in _BOOLEANS:
                raise ValueError(f"{name}={value!r}: wanted true or false")
            changes[name] = _BOOLEANS[value.lower()]
            continue
        kind = types[name] if types[name] in (int, float) else str
        try:
            changes[name] = kind(value)
        except ValueError:
            raise ValueError(f"{name}={value!r}: wanted {kind.__name__}") from None
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]
