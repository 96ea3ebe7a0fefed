"""What a training run of feature wrappers is: one frozen dataclass, its presets, and ``key=value`` overrides."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxwrap.codec import QP_RANGE
from jaxwrap.codecs.jpeg.dct import BLOCK_SIZES


@dataclasses.dataclass(frozen=True)
class FcmFitConfig:
    """A training run of one or several wrappers around a detector's features, through the proxy codec.

    Per picture, in units of a position of the latents: D = Σ M (y − ŷ)², squared errors of all features relative to
    their scale's mean square (`FcmWrapper.metric`); R the proxy's bits; Δ the proxy's step, drawn per picture from
    ``qp_low … qp_high``. The loss is D + λ Δ² R, with λ Δ² in proportion to what an encoder pays at that step: so one
    wrapper serves all QPs. With ``balanced`` each picture's loss is divided by its own D, so that a low QP, whose D is
    small, counts as much as a high one: a change by 1 dB is worth the same at every rate.
    """

    data: str = ""
    """Folders of pictures, separated by commas; COCO's ``train2017``, say."""
    network: str = "yolox-nano"
    """The detector whose features are wrapped."""
    weights: str = ""
    """Its weights file; empty: found in the folder that JAXWRAP_NETWORKS names."""
    split: str = ""
    """The layer after which it is cut; empty: its own default."""
    latent_channels: int = 112
    latent_stride: int = 16
    width: int = 128
    blocks: int = 2
    statistics: Literal["none", "picture"] = "none"
    """``picture``: mean and deviation of each scale are sent with each picture, and counted."""
    start: Literal["principal", "random"] = "principal"
    """Of the linear maps: principal components of the training features, or random numbers."""
    transform: Literal["none", "klt"] = "none"
    """``klt``: the channels' KLT stands between networks and proxy, estimated anew as training goes on. The codec sees
    no redundancy between tiles; nor does the proxy, which can therefore not teach the networks to remove it quickly."""
    transform_every: int = 100
    """Steps between two estimates of that KLT."""
    reach: float = 0.2
    """Standard deviation of the strongest latent at the start; 1 is the codec's full range. With it the operating point
    is chosen: twice as much is 6 QPs."""
    lmbda: float = 1.0
    """λ relative to an encoder's own (0.57 · 2^((QP − 12) / 3) per bit, for errors of the starting point's latents)."""
    balanced: bool = True
    qp_low: float = 10.0
    qp_high: float = 42.0
    task: float = 0.0
    """Weight of the task's loss: how far what detection ranks by, behind part 2, moves from what the network makes of
    its own features. In the units of D's logarithm: with 1 a change by 1 dB counts like one of D."""
    idempotence: float = 0.0
    """Weight of ‖reduce(restore(ẑ)) − ẑ‖² relative to the latents' energy: what is coded twice should change once."""
    decorrelation: float = 0.0
    """Weight of the mean squared correlation between latent channels: the other way to hide nothing from the codec."""
    members: str = ""
    """Several wrappers in one job: ``lmbda=0.5:1:2;width=64:128;seed=0:1`` trains all combinations, vmapped over one
    stream of batches. Empty: one."""
    views: int = 4
    """Views of each picture whose features are computed before training: the picture, and random crops, half of them
    mirrored."""
    crop: int = 16
    """Side of the square training crops, in positions of the latents."""
    batch: int = 8
    steps: int = 4000
    learning_rate: float = 1e-3
    """Peak of Adam's cosine schedule (warm-up: 2 % of the steps)."""
    rate_refresh: int = 8
    """The rate's scale is counted exactly every so many steps."""
    init: str = ""
    """Wrapper file to start from."""
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    validate_every: int = 500

    def __post_init__(self) -> None:
        problems = []
        for name in (
            "latent_channels", "latent_stride", "width", "blocks", "transform_every", "views", "batch", "steps",
            "rate_refresh", "log_every", "checkpoint_every", "validate_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)}: wanted at least 1")
        for name in ("reach", "lmbda", "learning_rate"):
            if not getattr(self, name) > 0:
                problems.append(f"{name}={getattr(self, name)}: wanted a positive number")
        for name in ("task", "idempotence", "decorrelation"):
            if getattr(self, name) < 0:
                problems.append(f"{name}={getattr(self, name)}: wanted 0 or more")
        for name, known in (("statistics", ("none", "picture")), ("start", ("principal", "random")),
                            ("transform", ("none", "klt"))):  # fmt: skip
            if getattr(self, name) not in known:
                problems.append(f"{name}={getattr(self, name)!r}: wanted {' or '.join(known)}")
        if self.crop < 8 or self.crop % max(BLOCK_SIZES[:2]):
            problems.append(f"crop={self.crop}: wanted a multiple of 8, at least 8")
        if not QP_RANGE[0] <= self.qp_low <= self.qp_high <= QP_RANGE[1]:
            problems.append(f"qp_low={self.qp_low:g}, qp_high={self.qp_high:g}: wanted 0 ≤ low ≤ high ≤ 51")
        if problems:
            raise ValueError("this training configuration cannot run:\n  " + "\n  ".join(problems))
        self.member_list()

    def member_list(self) -> list[Member]:
        """The wrappers of the job. Raises `ValueError` for ``members`` that cannot be read."""
        choices: dict[str, list[str]] = {
            "lmbda": [str(self.lmbda)], "width": [str(self.width)], "seed": [str(self.seed)]
        }  # fmt: skip
        for word in filter(None, (part.strip() for part in self.members.split(";"))):
            name, equals, values = word.partition("=")
            if not equals or name not in choices:
                raise ValueError(
                    f"members={self.members!r}: {word!r} is no KEY=VALUE:VALUE with KEY one of {', '.join(choices)}"
                )
            choices[name] = values.split(":")
        try:
            members = [
                Member(float(lmbda), int(width), int(seed))
                for lmbda in choices["lmbda"]
                for width in choices["width"]
                for seed in choices["seed"]
            ]
        except ValueError:
            raise ValueError(f"members={self.members!r}: wanted numbers separated by colons") from None
        if any(not (m.lmbda > 0 and 1 <= m.width <= self.width) for m in members) or len(set(members)) < len(members):
            raise ValueError(
                f"members={self.members!r}: wanted different ones with lmbda > 0 and width in 1 … {self.width} (width=)"
            )
        return members


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One wrapper of a job."""

    lmbda: float
    width: int
    seed: int

    @property
    def name(self) -> str:
        """For files and logs."""
        return f"lmbda{self.lmbda:g}-width{self.width}-seed{self.seed}"


PRESETS: dict[str, FcmFitConfig] = {
    "fcm-yolox-nano": FcmFitConfig(transform="klt"),
    "fcm-yolo-fastestv2": FcmFitConfig(network="yolo-fastestv2", latent_channels=36, steps=3000, transform="klt"),
}
"""By the first word of ``jaxwrap train``; with ``--data coco/train2017`` the shipped wrappers of these names (23 and 4
minutes on two CPU cores that other work shared)."""
