"""The rows of a sweep: clips × codecs × modes × methods × scales of λ × QPs, each with its key."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from jaxwrap.codec import Codec, Config, EncodeRequest
from jaxwrap.methods.plan import Method
from jaxwrap.train.evaluate import nocodec
from jaxwrap.train.evaluate.checks import Combination, preset_of
from jaxwrap.train.evaluate.manifest import MEASURING_PACKAGES
from jaxwrap.train.evaluate.manifest import versions as package_versions
from jaxwrap.train.evaluate.mode import Mode
from jaxwrap.train.evaluate.options import method_options
from jaxwrap.train.evaluate.points import MEASUREMENT_VERSION, canonical_json, point_key
from jaxwrap.train.evaluate.sources import BIT_DEPTH, Source

PIXELS_PER_BATCH = 8_000_000
"""Luma samples of originals that a method sees at once (a clip is never divided)."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all rows of a sweep have in common, and which combinations of codec, mode, method and λ scale there are."""

    combinations: list[Combination]
    qps: list[float]
    dataset: str
    config: Config
    presets: Mapping[str, str] | str | None
    seed: int

    def preset_of(self, codec: Codec) -> str | None:
        """Its effort: that of its name, or the one for all; None is its default."""
        return preset_of(self.presets, codec)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row to be measured: its own key, and that of the measurement, which rows of other names may share."""

    key: str
    measurement: str
    source: Source
    mode: Mode
    method: Method
    codec: Codec
    lambda_scale: float
    qp: float

    @property
    def stream(self) -> tuple[Any, ...]:
        """Identity of the stream that the row is measured on: modes with one pre-processor share theirs under sse."""
        how = self.codec.name, self.lambda_scale, self.qp
        if self.method.name == "sse":
            return self.source.digest, self.source.fps, self.mode.pre_hash, *how
        return self.source.name, self.mode.name, id(self.method), *how

    @property
    def coded_samples(self) -> int:
        """Luma samples that the encoder is given."""
        height, width = self.mode.coded_size(self.source.size)
        return self.source.num_frames * height * width

    def request(self, settings: Settings) -> EncodeRequest:
        """What the codec is asked, weights apart."""
        return EncodeRequest(
            self.qp,
            settings.config,
            BIT_DEPTH,
            fps=self.source.fps,
            preset=settings.preset_of(self.codec),
            lambda_scale=self.lambda_scale,
        )

    def names(self, settings: Settings) -> dict[str, Any]:
        """The columns that figures do not depend on."""
        return {
            "key": self.key,
            "dataset": settings.dataset,
            "sequence": self.source.name,
            "mode": self.mode.name,
            "seed": settings.seed,
        }


def batches_of(sources: list[Source]) -> list[list[Source]]:
    """Clips of one size, chroma format and frame rate together, in the given order, up to `PIXELS_PER_BATCH`."""
    alike: dict[Any, list[list[Source]]] = {}
    for source in sources:
        height, width = source.size
        apart = source.name if source.alone else None
        groups = alike.setdefault((height, width, source.num_planes, source.fps, apart), [[]])
        if sum(s.num_frames for s in (*groups[-1], source)) * height * width > PIXELS_PER_BATCH and groups[-1]:
            groups.append([])
        groups[-1].append(source)
    return [batch for groups in alike.values() for batch in groups]


def rows_of(batch: list[Source], settings: Settings) -> Iterator[Row]:
    """The rows of a batch, in the order of `Settings.combinations` for each clip."""
    versions = package_versions()
    for (place, source), combination in itertools.product(enumerate(batch), settings.combinations):
        codec, mode, method = combination.codec, combination.mode, combination.method
        depends_on = {
            "clip": [source.digest, source.fps],
            "codec": [codec.name, codec.version, settings.config, settings.preset_of(codec), combination.lambda_scale],
            "mode": [mode.bits, mode.pre_hash, mode.post_hash, mode.receiver_hash],
            "method": [method.name, method_options(method)],
            # A method sees the whole batch, and draws by a picture's place in it.
            "batch": [] if method.name == "sse" else [place, *(s.digest for s in batch)],
            "seed": settings.seed if method.draws else None,
            "versions": {name: versions[name] for name in (*MEASURING_PACKAGES, "device")},
            "measurement_version": MEASUREMENT_VERSION,
        }
        for qp in settings.qps if mode.sends else [nocodec.QP]:
            measurement = point_key({**depends_on, "qp": qp})
            names = [settings.dataset, source.name, mode.name, settings.seed]
            key = point_key({"measurement": measurement, "names": names})
            yield Row(key, measurement, source, mode, method, codec, combination.lambda_scale, qp)


def configuration(sources: list[Source], settings: Settings) -> dict[str, Any]:
    """What was asked, for the manifest: folders hold one configuration."""
    combinations = settings.combinations
    modes = {c.mode.name: c.mode for c in combinations}
    methods = {canonical_json([c.method.name, method_options(c.method)]): c.method for c in combinations}
    return {
        "dataset": settings.dataset,
        "clips": {
            s.name: {
                "width": s.size[1],
                "height": s.size[0],
                "frames": s.num_frames,
                "fps": s.fps,
                "sha256": s.digest,
            }
            for s in sources
        },
        "modes": {name: mode.describe() for name, mode in modes.items()},
        "methods": [{"name": m.name, **method_options(m)} for m in methods.values()],
        "codecs": list({c.codec.name: None for c in combinations}),
        "lambda_scales": sorted({c.lambda_scale for c in combinations}, reverse=True),
        "config": settings.config,
        "preset": settings.presets if isinstance(settings.presets, str) else dict(settings.presets or {}),
        "qps": settings.qps,
        "seed": settings.seed,
        "coded_bit_depth": BIT_DEPTH,
    }
