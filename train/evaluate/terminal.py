"""``jaxwrap evaluate --task``: from what was asked to modes, and the sweep of a task as a terminal shows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from jaxwrap.codec import Codec
from jaxwrap.methods.plan import Method
from jaxwrap.tasks.detector import Detector
from jaxwrap.train.datasets.data import Task as Kind
from jaxwrap.train.datasets.data import TaskData, listed
from jaxwrap.train.datasets.open import open_task_data
from jaxwrap.train.evaluate.features import FeatureMode, LocalMode, RemoteMode, TaskMode
from jaxwrap.train.evaluate.pooled import CLIPPED_TOO_MUCH, TaskResult, TruthKind, run_task_sweep
from jaxwrap.train.evaluate.scoring import SCORES, Task
from jaxwrap.train.fit.checkpoints import SUFFIX
from jaxwrap.train.fit.fcm_checkpoints import load_fcm
from jaxwrap.train.fit.masks import load_mask_head
from jaxwrap.train.networks import load_detector
from jaxwrap.train.runs import conclude, console, progress_bar

BASELINES = ("remote", "local")


@dataclasses.dataclass(frozen=True)
class TaskRun:
    """What was asked on the command line. ``size``: (width, height) of the network's input; None: its own."""

    kind: str
    inputs: Sequence[Path]
    runs: Sequence[str]
    annotations: Path | None = None
    crowd: Path | None = None
    truth: str = "true"
    baselines: Sequence[str] = BASELINES
    network: Path | None = None
    size: str | None = None
    mask_head: str | None = None

    def __post_init__(self) -> None:
        for what, given, known in (
            ("--task", [self.kind], get_args(Kind)),
            ("--truth", [self.truth], get_args(TruthKind)),
            ("--baselines", self.baselines, BASELINES),
        ):
            if unknown := [word for word in given if word not in known]:
                raise ValueError(f"{what} {unknown[0]} was given; known: {', '.join(known)}")
        if not self.runs:
            raise ValueError("--task wants --run: the wrapper of a network's features (jaxwrap train fcm-yolox-nano)")

    def modes(self, data: TaskData) -> list[TaskMode]:
        """A mode of each run, and the baselines. Raises `ValueError` where runs share a name, are of different
        networks, or do not fit the network's weights; `FileNotFoundError`."""
        names = [_name(run) for run in self.runs]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"several --run are named {', '.join(repeated)}: rows are told apart by the names of files or folders; "
                "rename all but one"
            )
        wrappers = {name: load_fcm(run) for name, run in zip(names, self.runs, strict=True)}
        networks = {(w.config.network, w.config.split) for w, _, _ in wrappers.values()}
        if len(networks) > 1:
            given = ", ".join(f"{name} behind {split}" for name, split in sorted(networks))
            raise ValueError(f"the runs are of different networks ({given}): evaluate those of one network together")
        ((network, split),) = networks
        detector = self._sized(dataclasses.replace(load_detector(network, self.network), split=split))
        head = None
        if self.kind == "segmentation":
            head = load_mask_head(self.mask_head or f"mask-{network}", detector=detector)[0]
        elif self.mask_head is not None:
            raise ValueError("--mask-head was given, which only --task segmentation uses")
        task = Task(data.task, detector, data.class_ids, head)
        modes: list[TaskMode] = [FeatureMode(name, task, w, tuning) for name, (w, tuning, _) in wrappers.items()]
        if "remote" in self.baselines:
            modes.append(RemoteMode(task, next(iter(wrappers.values()))[0]))
        return [*modes, LocalMode(task)] if "local" in self.baselines else modes

    def _sized(self, detector: Detector) -> Detector:
        if self.size is None:
            return detector
        words = self.size.split("x")
        multiple = detector.network.multiple
        if len(words) != 2 or not all(word.isdecimal() and int(word) and int(word) % multiple == 0 for word in words):
            raise ValueError(
                f"--network-size {self.size!r} was given; wanted WIDTHxHEIGHT, multiples of {multiple} for "
                f"{detector.name}, such as {20 * multiple}x{12 * multiple}"
            )
        width, height = map(int, words)
        return dataclasses.replace(detector, expects=dataclasses.replace(detector.expects, height=height, width=width))


def run_task(
    asked: TaskRun, codecs: Sequence[Codec], methods: Sequence[Method], qps: Sequence[float], out: Path, **options: Any
) -> int:
    """Sweep, scores and report; returns the number of points that failed, after naming them. ``options`` as in
    `jaxwrap.train.evaluate.sweep.run_sweep`."""
    data = open_task_data(asked.inputs, asked.kind, asked.annotations, crowd=asked.crowd)  # type: ignore[arg-type]
    modes = asked.modes(data)
    with progress_bar() as bar:
        result = run_task_sweep(
            data, modes, codecs, qps, methods, out,
            truth=asked.truth,  # type: ignore[arg-type]
            progress=bar, **options,
        )  # fmt: skip
    _say(result, data.task, out)
    return conclude(result.sweep, out)


def _say(result: TaskResult, kind: Kind, out: Path) -> None:
    for name, share in result.clipped.items():
        if share > CLIPPED_TOO_MUCH:
            console.print(
                f"[yellow]{name}: {share:.2%} of the samples were clipped to the codec's range[/]; the wrapper sends "
                "values beyond [−1, 1]",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
    clipped = max(result.clipped.values(), default=0.0)
    console.print(f"samples clipped to the codec's range: {clipped:.4%} at most", highlight=False)
    for point in result.scores:
        if point.mode == "local":
            scores = [f"{name} {getattr(point, name):.4f}" for name in SCORES[kind]]
            console.print(f"local inference, uncompressed: {', '.join(scores)}", highlight=False)
    if result.incomplete:
        console.print(f"[yellow]without a score:[/] {listed(result.incomplete)}", highlight=False, soft_wrap=True)
    console.print(f"scores: {out}/scores.csv", highlight=False, soft_wrap=True)


def _name(run: str) -> str:
    path = Path(run)
    label = path.name.removesuffix(SUFFIX)
    if path.name.endswith(SUFFIX) and label in ("best", "last"):
        label = path.resolve().parent.name
    return label if label.startswith("fcm-") else f"fcm-{label}"
