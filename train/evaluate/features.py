"""Modes of a task: features of a detector through a wrapper, the picture itself, or nothing.

======================  ==========================================================================================
``fcm-NAME``            part 1 of the network ─► wrapper ─► codec ─► wrapper ─► part 2
``remote``              the picture, 4:2:0 at 10 bits ─► codec ─► the whole network
``local``               the whole network where the picture is: no codec, no bits, one row
======================  ==========================================================================================

All stages but the scaling of pictures run at one shape, that of the network's input, and are compiled once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, Yuv400
from jaxwrap.colour import yuv_to_rgb
from jaxwrap.importance.receiver import PerFrame, apply, as_partial
from jaxwrap.methods import Calibrated, Fold, Fwa, Method, TaskAware, stages_of
from jaxwrap.methods.plan import Plan
from jaxwrap.metrics.distortion import mean_psnr
from jaxwrap.packing import TileLayout
from jaxwrap.pipeline import Sandwich
from jaxwrap.samples import denormalise, normalise
from jaxwrap.tasks.network import Tensors
from jaxwrap.tasks.ranking import ranking_head
from jaxwrap.train.evaluate.mode import Measured, Mode, Prepared, decibels, energies
from jaxwrap.train.evaluate.modes import network_hash
from jaxwrap.train.evaluate.options import digest_of
from jaxwrap.train.evaluate.scoring import Task
from jaxwrap.train.evaluate.sources import BIT_DEPTH, PictureSource, Source
from jaxwrap.train.evaluate.stopwatch import Stopwatch
from jaxwrap.wrappers.fcm import FcmTuning, FcmWrapper


@dataclasses.dataclass
class _Reference:
    """What the measurement of a clip needs: the network's features y, the receiver r, z, and r(z) once it is known."""

    features: Tensors
    receiver: jax.tree_util.Partial
    z: Frame
    restored: Tensors | None = None


class TaskMode(Mode):
    """A mode whose quality is what a task's network makes of what arrives."""

    def __init__(self, name: str, task: Task) -> None:
        self.name, self.bits, self.task = name, 0, task
        detector = task.detector
        expects = dataclasses.asdict(detector.expects)
        network = network_hash([detector.name, detector.split, expects], detector.network)
        # The network is at one end or at both; what it makes of features is the task's.
        self.pre_hash = self.post_hash = network_hash([type(self).__name__, network], None)
        self.receiver_hash = task.digest

    @property
    def takes_methods(self) -> bool:
        """Baselines run as they are."""
        return False

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        detector = self.task.detector
        return {**super().describe(), "network": detector.name, "split": detector.split, "weights": detector.digest}


class FeatureMode(TaskMode):
    """A detector's features through a wrapper.

    ``tuning``: constants of the methods fwa, calibrated and fold; None where the wrapper has none. Raises `ValueError`
    where the wrapper is of another network, split or size.
    """

    def __init__(self, name: str, task: Task, wrapper: FcmWrapper, tuning: FcmTuning | None) -> None:
        super().__init__(name, task)
        detector, config = task.detector, wrapper.config
        if (config.network, config.split) != (detector.name, detector.split):
            raise ValueError(
                f"{name} codes the features of {config.network} behind {config.split}; the task's network is "
                f"{detector.name}, cut behind {detector.split}"
            )
        height, width = detector.expects.height, detector.expects.width
        if height is None or width is None:
            raise ValueError(f"{detector.name} takes pictures of any size: give --network-size WIDTHxHEIGHT")
        self.wrapper, self.tuning = wrapper, tuning
        images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
        self.layout: TileLayout = wrapper.layout(jax.eval_shape(detector.part1, images))
        self.pre_hash = network_hash([self.pre_hash, config.to_dict()], wrapper)
        constants = [] if tuning is None else [getattr(tuning, f.name) for f in dataclasses.fields(tuning)]
        self.post_hash = network_hash([self.pre_hash, digest_of(*constants)], None)

    @property
    def takes_methods(self) -> bool:
        """See `Mode.takes_methods`."""
        return True

    def coded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """That of the packed frame, whatever the pictures' own."""
        return self.layout.size

    def coded_planes(self, planes: int) -> int:
        """4:0:0."""
        return 1

    def prepare(self, batch: Sequence[Source]) -> Prepared:
        """See `Mode.prepare`; the seconds are the wrapper's, without part 1."""
        (source,) = batch
        features = self.task.features(_pictures(source).rgb())
        with Stopwatch() as watch:
            sandwich = self.wrapper.sandwich(features)
            near: Any = sandwich.pre
            z = jax.block_until_ready(apply(jax.tree_util.Partial(_Sampled(sandwich.bit_depth), near), features))
        restore = as_partial(self.wrapper.restore)
        statistics = PerFrame(self.wrapper.statistics(features))
        receiver = jax.tree_util.Partial(_Received(sandwich.bit_depth, self.layout), restore, statistics)
        reference = _Reference(jax.device_get(features), receiver, jax.device_get(z))
        bits = np.full(source.num_frames, self.wrapper.statistics_bits())
        return Prepared(sandwich, z, receiver, lambda: features, [reference], watch.seconds, bits)

    def measure(self, source: Source, reference: _Reference, undo: Any, decoded: Frame) -> Measured:
        """See `Mode.measure`; the seconds are the wrapper's, without part 2."""
        with Stopwatch() as watch:
            restored = jax.block_until_ready(_far_side(reference.receiver, undo, decoded))
        if reference.restored is None:
            reference.restored = jax.device_get(_far_side(reference.receiver, None, reference.z))
        found = jax.device_get(restored)
        sums = {
            "feature_snr": energies(reference.features, found, self.wrapper.metric),
            "receiver_snr": energies(reference.restored, found, self.wrapper.metric),
        }
        figures = {name: decibels(*both) for name, both in sums.items()} | {"network": self.task.detector.name}
        return Measured(figures, watch.seconds, sums, self.task.predictions(restored, _pictures(source)))

    def settings_of(self, stage: Any) -> dict[str, Any]:
        """Metric and depth of the samples; constants that the stage lacks, from the wrapper; the task's head."""
        values: dict[str, Any] = {"metric": self.wrapper.metric, "bit_depth": self.wrapper.config.bit_depth}
        if isinstance(stage, TaskAware):
            values |= {"metric": None, "head": ranking_head(self.task.detector)}
        if isinstance(stage, Calibrated) and stage.map is None:
            values["map"] = self._constants.get("calibrated")
        elif isinstance(stage, Fwa) and stage.map is None:
            values["map"] = self._constants.get("fwa")
        elif isinstance(stage, Fold) and stage.transform is None:
            values["transform"] = self._constants.get("fold")
        return values

    @functools.cached_property
    def _constants(self) -> dict[str, Any]:
        """Made once: programs that a transform's methods are constants of are compiled once for each object."""
        if self.tuning is None:
            return {}
        tuning, layout = self.tuning, self.layout
        return {"calibrated": tuning.calibrated(layout), "fwa": tuning.fwa(layout), "fold": tuning.fold(layout)}

    def check_method(self, method: Method) -> None:
        """Raises `ValueError` where the wrapper lacks the constants that a method wants."""
        for stage in stages_of(method):
            wants = (isinstance(stage, Fwa) and stage.map is None) or (
                isinstance(stage, Fold) and stage.transform is None
            )
            if wants and self.tuning is None:
                raise ValueError(
                    f"method {method.name} wants constants from training, and {self.name} has none: end its training "
                    "(jaxwrap train), or leave the method out"
                )


class RemoteMode(TaskMode):
    """The picture itself is coded, and the whole network looks at what was decoded: remote inference.

    ``judge``: the wrapper whose metric of features ``feature_snr`` is in; None: it stays empty.
    """

    def __init__(self, task: Task, judge: FcmWrapper | None = None) -> None:
        super().__init__("remote", task)
        self.metric = None if judge is None else judge.metric
        if judge is not None:
            scales = [np.asarray(rms[...]) for _, rms in sorted(judge.feature_rms.items())]
            self.post_hash = network_hash([self.post_hash, digest_of(*scales)], None)

    def coded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Odd sides are padded to even ones."""
        height, width = size
        return height + height % 2, width + width % 2

    def prepare(self, batch: Sequence[Source]) -> Prepared:
        """See `Mode.prepare`."""
        (source,) = batch
        z = jax.tree.map(lambda plane: jnp.asarray(plane, jnp.float32), source.samples)
        return Prepared(Sandwich(_same, _same, BIT_DEPTH), z, None, lambda: None, [None], 0.0)

    def measure(self, source: Source, reference: Any, undo: Any, decoded: Frame) -> Measured:
        """See `Mode.measure`."""
        pictures = _pictures(source)
        height, width = source.size
        received = self.task.features(yuv_to_rgb(decoded, bit_depth=BIT_DEPTH)[:, :height, :width])
        psnr_y, psnr_yuv = mean_psnr(source.samples, decoded, BIT_DEPTH)
        figures = {"psnr_y": psnr_y, "psnr_yuv": psnr_yuv, "network": self.task.detector.name}
        sums = {}
        if self.metric is not None:
            wanted = jax.device_get(self.task.features(pictures.rgb()))
            sums["feature_snr"] = energies(wanted, jax.device_get(received), self.metric)
            figures["feature_snr"] = decibels(*sums["feature_snr"])
        return Measured(figures, 0.0, sums, self.task.predictions(received, pictures))


class LocalMode(TaskMode):
    """The whole network where the pictures are: nothing is sent."""

    def __init__(self, task: Task) -> None:
        super().__init__("local", task)

    @property
    def sends(self) -> bool:
        """See `Mode.sends`."""
        return False

    def coded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Nothing is coded."""
        return 0, 0

    def coded_planes(self, planes: int) -> int:
        """See `Mode.coded_planes`."""
        return 1

    def prepare(self, batch: Sequence[Source]) -> Prepared:
        """Frames without a sample."""
        (source,) = batch
        z = Yuv400(jnp.zeros((source.num_frames, 0, 0), jnp.float32))
        return Prepared(Sandwich(_same, _same, BIT_DEPTH), z, None, lambda: None, [None], 0.0)

    def measure(self, source: Source, reference: Any, undo: Any, decoded: Frame) -> Measured:
        """See `Mode.measure`."""
        pictures = _pictures(source)
        found = self.task.predictions(self.task.features(pictures.rgb()), pictures)
        return Measured({"network": self.task.detector.name}, 0.0, {}, found)


def _pictures(source: Source) -> PictureSource:
    if not isinstance(source, PictureSource):
        raise ValueError(f"{source.name} is a clip of samples; a task's network wants pictures that keep their RGB")
    return source


def _same(frame: Frame) -> Frame:
    return frame


@jax.jit
def _far_side(receiver: jax.tree_util.Partial, undo: Any, samples: Frame) -> Tensors:
    return receiver(Plan(samples, undo=undo).undone(jax.tree.map(lambda p: p.astype(jnp.float32), samples)))


@dataclasses.dataclass(frozen=True)
class _Sampled:
    bit_depth: int

    def __call__(self, pre: jax.tree_util.Partial, features: Tensors) -> Frame:
        return denormalise(pre(features), self.bit_depth)


@dataclasses.dataclass(frozen=True)
class _Received:
    bit_depth: int
    layout: TileLayout

    def __call__(self, restore: jax.tree_util.Partial, statistics: PerFrame, samples: Frame) -> Tensors:
        return restore(normalise(samples, self.bit_depth), statistics.values, self.layout)
