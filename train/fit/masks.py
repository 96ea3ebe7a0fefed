"""Training of a mask head on the features of a frozen detector, and the head's file.

The detector never runs in the loop: every picture is looked at a few times before it (as it is, flipped, smaller on a
larger canvas), and its features are kept in memory, in float16 (YOLOX-nano: 0.6 MB per view). What the head is trained
on are boxes of the truth, each edge moved at random, and the share of each cell of their grids that the object's mask
covers.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxwrap.codecs.files import write_atomically
from jaxwrap.parameters import assign_parameters, named_parameters
from jaxwrap.tasks.detector import Detector
from jaxwrap.tasks.masks import MaskHead, MaskHeadConfig, Scale, crop_mask
from jaxwrap.tasks.network import Tensors
from jaxwrap.tasks.pictures import PictureInput
from jaxwrap.train.datasets.data import TaskData
from jaxwrap.train.fit.checkpoints import RunStates
from jaxwrap.train.fit.folder import Log, claim, digest_of, made_with
from jaxwrap.train.fit.loop import Progress
from jaxwrap.train.prefetch import prefetch

SUFFIX = ".head.npz"

FORMAT = 1
"""Number of the layout of these files; it grows when older readers would misread a newer file."""

LOG_FIELDS = ("step", "loss", "iou", "gradient_norm", "validation_loss", "validation_iou", "seconds")

_ONE_THREAD = {"xla_cpu_multi_thread_eigen": False}
"""Of jaxlib 0.10.2 on two cores: with several threads a run came to a stop at step 440, all threads waiting for each
other. A step is so small that one thread is as fast (.2 seconds)."""

FeaturesOf = Callable[[jax.Array, jax.Array], Tensors]
"""(images ``[1, H, W, 3]`` as the detector takes them, key) → features by name, as `Detector.features` gives them."""


@dataclasses.dataclass(frozen=True)
class MaskFitConfig:
    """A training run of one mask head.

    The loss of a box is the binary cross-entropy of its cells, plus ``dice`` times 1 minus the Dice coefficient
    (Milletari et al. 2016, section 3).
    """

    data: str = ""
    """A folder of pictures with a COCO file beside it or in it (``train2017`` and ``instances_train2017.json``, or
    COCO's own ``annotations`` folder); or any other that holds its own masks, such as Penn-Fudan's."""
    annotations: str = ""
    """The COCO file, where ``data`` is the folder of the pictures themselves."""
    network: str = "yolox-nano"
    """The detector whose features are read."""
    weights: str = ""
    """Its weights file; empty: found in the folder that JAXWRAP_NETWORKS names."""
    steps: int = 400
    pictures: int = 12
    """Per step."""
    boxes: int = 4
    """Per picture and step, drawn anew each time; pictures with fewer objects leave places empty."""
    learning_rate: float = 2e-3
    """Peak of Adam's cosine schedule (warm-up: 5 % of the steps)."""
    weight_decay: float = 5e-2
    dice: float = 1.0
    jitter: float = 0.1
    """Each edge of a box is moved by up to this share of the box's side, so that the head knows detections that are
    off."""
    views: int = 4
    """Times that each picture's features are computed: as it is, flipped, and from then on on canvases that are up to
    ``canvas`` times as wide and high, every other one flipped."""
    canvas: float = 1.6
    held_out: int = 8
    """Every so manieth picture is never trained on. The overlap with the truth on these chooses the checkpoint: their
    cross-entropy rises again while masks still become better, because the head grows too sure of itself."""
    width: int = 48
    blocks: int = 3
    fine_width: int = 24
    init: str = ""
    """Mask head to start from, a file or the name of a shipped one; empty: from scratch."""
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 200
    validate_every: int = 50

    def __post_init__(self) -> None:
        problems = []
        counts = ("pictures", "boxes", "views", "width", "fine_width", "log_every", "checkpoint_every")
        for name, least in {
            **dict.fromkeys((*counts, "validate_every"), 1),
            "steps": 2,
            "held_out": 2,
            "blocks": 0,
        }.items():
            if getattr(self, name) < least:
                problems.append(f"{name}={getattr(self, name)}: wanted at least {least}")
        for name in ("weight_decay", "dice"):
            if getattr(self, name) < 0:
                problems.append(f"{name}={getattr(self, name)}: wanted 0 or more")
        if not self.learning_rate > 0:
            problems.append(f"learning_rate={self.learning_rate}: wanted a positive number")
        if not 0 <= self.jitter <= 0.25:
            problems.append(f"jitter={self.jitter}: wanted 0 … 0.25, so that half of each box is left")
        if self.canvas < 1:
            problems.append(f"canvas={self.canvas}: wanted at least 1")
        if problems:
            raise ValueError("this training configuration cannot run:\n  " + "\n  ".join(problems))


PRESETS: dict[str, MaskFitConfig] = {
    # jaxwrap train mask-yolox-nano --data COCO_DIR    (the shipped mask-yolox-nano)
    #   About 4 minutes of one CPU core on the 100 pictures with masks of the test data. Expect an overlap of .605 with
    #   held-out masks (step 300). With YOLOX-nano's boxes (score > .01, suppression at .65) mask AP / AP50 are .214 /
    #   .407 on the 64 val2017 pictures and .333 / .909 on Penn-Fudan; an ellipse in each box has .171 / .372 and .096 /
    #   .379, the boxes themselves .359 / .517 and .717 / .952.
    "mask-yolox-nano": MaskFitConfig(),
    "mask-yolo-fastestv2": MaskFitConfig(network="yolo-fastestv2"),
}
"""By the first word of ``jaxwrap train``."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskFitState:
    """Everything that a resumed run needs; the data position is ``step`` itself."""

    step: jax.Array
    params: Any
    optimiser: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskMetrics:
    """Means over the boxes of a batch: the loss, and the overlap (intersection over union) of mask and truth on the
    boxes' grids, both cut at ½; and the norm of the gradient before clipping (0 in validation)."""

    loss: jax.Array
    iou: jax.Array
    gradient_norm: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """``features`` by name ``[N, H, W, C]``; ``boxes [N, K, 4]`` in pixels of the network's input; ``targets``
    ``[N, K, S, S]`` in [0, 1]; ``filled [N, K]``: 1, or 0 for an empty place."""

    features: dict[str, Any]
    boxes: Any
    targets: Any
    filled: Any


@dataclasses.dataclass(frozen=True, eq=False)
class _Object:
    """An object of the truth in pixels of a view: its box (x0, y0, x1, y1), and its mask with the place (x, y) of the
    mask's top left corner."""

    box: np.ndarray
    mask: np.ndarray
    origin: tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class _View:
    """A picture as it was looked at: ``bounds`` (x0, y0, x1, y1) of the picture on its canvas; ``scale`` (x, y): pixels
    of the network's input per pixel of the canvas."""

    features: dict[str, np.ndarray]
    bounds: np.ndarray
    scale: np.ndarray
    objects: tuple[_Object, ...]


def fit_mask_head(
    config: MaskFitConfig,
    detector: Detector,
    data: TaskData,
    out: Path,
    *,
    features: FeaturesOf | None = None,
    notes: Mapping[str, Any] | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> MaskHead:
    """Trains one mask head, or goes on where ``out`` stopped; returns the last one and leaves ``last.head.npz`` and
    ``best.head.npz`` (of the largest overlap with the truth on the held-out pictures) there.

    Args:
      config: what the run is.
      detector: of a fixed input size; it is not changed.
      data: still pictures with masks, for segmentation (``coco_data(…, task="segmentation")``).
      out: a new or empty folder, or that of the same run.
      features: what the head sees of a picture instead of the detector's own features, for instance those that a
        wrapper restores after the proxy codec: a function of the images and a key, called ``views`` times per picture
        with different keys (so a codec may draw its step size from it), and once per held-out picture.
      notes: what the files shall say about ``features``.
      report: called after each logged interval and validation.

    Raises:
      ValueError: no picture or object to train on or to hold out, a detector without a fixed input size, or ``out`` of
        another run (differences named).
      FloatingPointError: at the first step whose loss is not finite; the states before it stay on disk.
    """
    scales = feature_scales(detector)
    shape = MaskHeadConfig(scales, width=config.width, blocks=config.blocks, fine_width=config.fine_width)
    head = MaskHead(shape, rngs=nnx.Rngs(config.seed))
    if config.init:
        source, _ = load_mask_head(config.init)
        assign_parameters(head, named_parameters(source), source=config.init)
    own = features is None
    pictures, held_out = _looked_at(config, detector, data, features or (lambda images, key: detector.features(images)))
    contents = {
        "detector": f"{detector.name} {detector.digest} {detector.split}",
        "pictures": _digest(pictures),
        "held_out_pictures": _digest(held_out),
        "initial_parameters": digest_of(named_parameters(head)),
    }
    claim(out, dataclasses.asdict(config) | contents)
    about = {
        "trained_with": dataclasses.asdict(config),
        "detector": detector.name,
        "weights": detector.digest,
        "split": detector.split,
        "data": data.name,
        "training_pictures": len(pictures),
        "training_objects": sum(len(views[0].objects) for views in pictures),
        "features": "of the detector" if own else "given",
        **(notes or {}),
    }

    options = _ONE_THREAD if jax.default_backend() == "cpu" else None
    step = jax.jit(make_step(head, config), donate_argnums=0, compiler_options=options)
    loss = make_loss(head, config)
    validate = jax.jit(lambda params, batch: loss(params, batch)[1], compiler_options=options)
    validation = list(_validation_batches(config, shape, held_out))

    states, log = RunStates(out), Log(out / "log.csv", LOG_FIELDS)

    def validated(state: MaskFitState, best: float) -> float:
        number, figures = int(state.step), _weighted_mean(validate, state.params, validation)
        if not np.isfinite(figures["validation_loss"]):
            raise FloatingPointError(f"the validation loss is not finite at step {number}; lower learning_rate")
        log.write({"step": number, **figures})
        if figures["validation_iou"] > best:
            best = figures["validation_iou"]
            trained = with_parameters(head, jax.device_get(state.params))
            save_mask_head(out / f"best{SUFFIX}", trained, notes={**about, "step": number, **figures, **made_with()})
        report(Progress(number, config.steps, figures))
        return best

    try:
        fresh = initial_state(head, config)
        state: Any = states.latest(fresh)
        if state is None:
            log.resume(-1)
            state = fresh
            best = validated(state, -float("inf"))
            states.save(state)
        else:
            log.resume(int(state.step))
            best = _best_overlap(out / "log.csv")
        batches = prefetch(_batch(config, shape, pictures, k) for k in range(int(state.step), config.steps))
        pending: list[tuple[int, MaskMetrics]] = []
        started = time.perf_counter()
        for number, batch in enumerate(batches, start=int(state.step) + 1):
            state, metrics = step(state, batch)
            pending.append((number, metrics))
            last = number == config.steps
            if last or number % config.log_every == 0 or number % config.checkpoint_every == 0:
                row = _finite_mean(pending)
                now = time.perf_counter()
                log.write({**row, "step": number, "seconds": round((now - started) / len(pending), 4)})
                started, pending = now, []
                report(Progress(number, config.steps, row))
            if last or number % config.validate_every == 0:
                best = validated(state, best)
            if last or number % config.checkpoint_every == 0:
                states.save(state)
    finally:
        states.close()
    trained = with_parameters(head, jax.device_get(state.params))
    save_mask_head(out / f"last{SUFFIX}", trained, notes={**about, "step": int(state.step), **made_with()})
    return trained


def feature_scales(detector: Detector) -> tuple[Scale, ...]:
    """Name, stride and channels of each tensor of a detector's features, finest first.

    Raises `ValueError` for a detector whose input has no fixed size: its features could not be batched.
    """
    height, width = _input_size(detector.expects)
    shapes = jax.eval_shape(detector.part1, jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32))
    return tuple(sorted(((n, height // s.shape[1], s.shape[3]) for n, s in shapes.items()), key=lambda scale: scale[1]))


def save_mask_head(path: Path, head: MaskHead, *, notes: Mapping[str, Any]) -> None:
    """Writes configuration, parameters and ``notes`` (how it was trained) to one file, by way of a temporary name."""
    meta = json.dumps({"format": FORMAT, "config": head.config.to_dict(), "notes": dict(notes)}, sort_keys=True)
    content = io.BytesIO()
    np.savez(content, __meta__=np.array(meta), **named_parameters(head))  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def load_mask_head(path: str | Path, *, detector: Detector | None = None) -> tuple[MaskHead, dict[str, Any]]:
    """A mask head and the notes beside it, from a file, a training folder, or the name of a shipped one
    (``mask-yolox-nano``).

    Raises `FileNotFoundError` naming what ships; `ValueError` where the file is no mask head, does not fit its
    configuration, or was trained on another split or other weights than those of ``detector``.
    """
    file = _resolve(path)
    config, notes, arrays = _read(file)
    head = nnx.eval_shape(lambda: MaskHead(config, rngs=nnx.Rngs(0)))
    assign_parameters(head, arrays, source=str(file))
    if detector is not None:
        made_for = {name: notes.get(name) for name in ("detector", "split", "weights")}
        given = {"detector": detector.name, "split": detector.split, "weights": detector.digest}
        if made_for != given:
            raise ValueError(f"{file} was trained for {_described(made_for)}; given: {_described(given)}")
    return head, notes


def shipped_mask_heads() -> dict[str, Path]:
    """Names and files of the mask heads that come with the package."""
    folder = Path(str(resources.files("jaxwrap.train"))) / "checkpoints"
    return {file.name.removesuffix(SUFFIX): file for file in sorted(folder.glob(f"*{SUFFIX}"))}


def make_loss(head: MaskHead, config: MaskFitConfig) -> Callable[..., tuple[jax.Array, MaskMetrics]]:
    """The loss of ``(params, batch)``."""

    def loss(params: Any, batch: Batch) -> tuple[jax.Array, MaskMetrics]:
        logits, targets = with_parameters(head, params)(batch.features, batch.boxes), batch.targets
        cells = (-2, -1)
        p = jax.nn.sigmoid(logits)
        cross_entropy = jnp.mean(jax.nn.softplus(logits) - logits * targets, axis=cells)
        squares = jnp.sum(p * p + targets * targets, axis=cells)
        dice = 2 * jnp.sum(p * targets, axis=cells) / jnp.maximum(squares, 1e-6)
        weights = batch.filled / jnp.maximum(jnp.sum(batch.filled), 1)
        total = jnp.sum(weights * (cross_entropy + config.dice * (1 - dice)))
        found, there = logits >= 0, targets >= 0.5
        union = jnp.maximum(jnp.sum(found | there, axis=cells), 1)
        iou = jnp.sum(weights * (jnp.sum(found & there, axis=cells) / union))
        return total, MaskMetrics(total, iou, jnp.float32(0))

    return loss


def make_step(
    head: MaskHead, config: MaskFitConfig
) -> Callable[[MaskFitState, Batch], tuple[MaskFitState, MaskMetrics]]:
    """``(state, batch) → (state, metrics)``: jit it with the state donated."""
    loss, update = make_loss(head, config), optimiser(config).update

    def step(state: MaskFitState, batch: Batch) -> tuple[MaskFitState, MaskMetrics]:
        grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # what Optax is written for
            updates, opt_state = update(grads, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = dataclasses.replace(metrics, gradient_norm=optax.tree.norm(grads))
        return MaskFitState(state.step + 1, params, opt_state), metrics

    return step


def optimiser(config: MaskFitConfig) -> optax.GradientTransformation:
    """Adam with decoupled weight decay and a cosine schedule; gradients are clipped to norm 1."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(1, config.steps // 20), config.steps, end_value=0.01 * config.learning_rate
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=config.weight_decay))


def initial_state(head: MaskHead, config: MaskFitConfig) -> MaskFitState:
    """Step 0: fresh optimiser, the head's own parameters."""
    params = nnx.to_pure_dict(nnx.state(head, nnx.Param))
    return MaskFitState(jnp.int32(0), params, optimiser(config).init(params))


def with_parameters(head: MaskHead, params: Any) -> MaskHead:
    """A copy of the head's structure with these parameters (traced or not)."""
    graph, state = nnx.split(head, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def _looked_at(
    config: MaskFitConfig, detector: Detector, data: TaskData, features: FeaturesOf
) -> tuple[list[list[_View]], list[list[_View]]]:
    """The views of each picture with objects: of those to train on, and (one each) of those held out."""
    annotations: dict[int, list[dict[str, Any]]] = {}
    for annotation in data.truth["annotations"]:
        if not annotation.get("iscrowd") and annotation.get("segmentation"):
            annotations.setdefault(annotation["image_id"], []).append(annotation)
    key = jax.random.key(config.seed)
    training: list[list[_View]] = []
    held_out: list[list[_View]] = []
    for number, sequence in enumerate(data.sequences):
        (image_id,) = sequence.image_ids
        objects = [o for a in annotations.get(image_id, []) if (o := _object(a, sequence.size)) is not None]
        if not objects:
            continue
        group, count = (held_out, 1) if number % config.held_out == 0 else (training, config.views)
        rgb = sequence.rgb()[0]
        views = []
        for view in range(count):
            rng = np.random.default_rng([config.seed, image_id, view])
            canvas, bounds, seen = _canvas(rgb, objects, view, config.canvas, detector.expects.padding, rng)
            found = features(
                jnp.asarray(detector.images(canvas[None])), jax.random.fold_in(jax.random.fold_in(key, image_id), view)
            )
            inner = detector.expects.size_in(*canvas.shape[:2])
            views.append(
                _View(
                    {name: np.asarray(tensor[0]).astype(np.float16) for name, tensor in found.items()},
                    bounds,
                    np.array([inner[1] / canvas.shape[1], inner[0] / canvas.shape[0]]),
                    tuple(seen),
                )
            )
        group.append(views)
    if not training or not held_out:
        raise ValueError(
            f"{data.name} has {len(training)} pictures with masks to train on and {len(held_out)} held out (every "
            f"{config.held_out}th of {len(data.sequences)}); wanted at least one of each: give more pictures with masks"
        )
    return training, held_out


def _object(annotation: dict[str, Any], size: tuple[int, int]) -> _Object | None:
    """An annotation's box and mask; None where the mask is empty or the box thinner than a pixel."""
    from pycocotools import mask as codes

    code, (height, width) = annotation["segmentation"], size
    if isinstance(code, list):
        code = codes.merge(codes.frPyObjects(code, height, width))
    elif isinstance(code["counts"], list):
        code = codes.frPyObjects(code, height, width)
    left, top, inner_width, inner_height = (int(v) for v in codes.toBbox(code))
    x, y, w, h = annotation["bbox"]
    box = np.clip(np.array([x, y, x + w, y + h], np.float64), 0, [width, height, width, height])
    if not inner_width or not inner_height or (box[2:] - box[:2]).min() < 1:
        return None
    with warnings.catch_warnings():  # pycocotools 2.0.11 knows no `copy` of NumPy 2
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        mask = codes.decode(code)
    return _Object(box, mask[top : top + inner_height, left : left + inner_width].astype(bool), (left, top))


def _canvas(
    rgb: np.ndarray, objects: list[_Object], view: int, largest: float, padding: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, list[_Object]]:
    """View 0: the picture; 1: flipped; 2, 3, …: somewhere on a canvas that is larger by a random factor (and filled as
    the detector's letterbox is), so that objects of all sizes are seen smaller."""
    height, width = rgb.shape[:2]
    if view % 2:
        rgb = rgb[:, ::-1]
        objects = [
            _Object(
                np.array([width - o.box[2], o.box[1], width - o.box[0], o.box[3]]),
                o.mask[:, ::-1],
                (width - o.origin[0] - o.mask.shape[1], o.origin[1]),
            )
            for o in objects
        ]
    left = top = 0
    if view >= 2:
        factor = rng.uniform(1, largest)
        left, top = (int(rng.integers(0, int(side * (factor - 1)) + 1)) for side in (width, height))
        canvas = np.full((int(height * factor), int(width * factor), 3), round(padding), np.uint8)
        canvas[top : top + height, left : left + width] = rgb
        rgb = canvas
    shift = np.array([left, top, left, top])
    moved = [_Object(o.box + shift, o.mask, (o.origin[0] + left, o.origin[1] + top)) for o in objects]
    return np.ascontiguousarray(rgb), np.array([0, 0, width, height]) + shift, moved


def _batch(config: MaskFitConfig, shape: MaskHeadConfig, pictures: list[list[_View]], step: int) -> Batch:
    """A pure function of seed and step."""
    rng = np.random.default_rng([config.seed, step])
    drawn = rng.choice(len(pictures), config.pictures, replace=len(pictures) < config.pictures)
    rows = []
    for picture in drawn:
        view = pictures[picture][rng.integers(len(pictures[picture]))]
        objects = [view.objects[n] for n in rng.permutation(len(view.objects))[: config.boxes]]
        moves = rng.uniform(-config.jitter, config.jitter, (len(objects), 4))
        rows.append((view, [(o, _moved(o.box, m, view.bounds)) for o, m in zip(objects, moves, strict=True)]))
    return _stacked(rows, shape, config.boxes)


def _validation_batches(config: MaskFitConfig, shape: MaskHeadConfig, pictures: list[list[_View]]) -> Iterator[Batch]:
    """All objects of the held-out pictures, in their own boxes; every batch of the same shape."""
    rows = [
        (view, [(o, o.box) for o in view.objects[first : first + config.boxes]])
        for (view,) in pictures
        for first in range(0, len(view.objects), config.boxes)
    ]
    for first in range(0, len(rows), config.pictures):
        part = rows[first : first + config.pictures]
        yield _stacked(part + [(part[0][0], [])] * (config.pictures - len(part)), shape, config.boxes)


def _moved(box: np.ndarray, moves: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The box with its edges moved by shares of its sides, inside of the picture."""
    width, height = box[2:] - box[:2]
    return np.clip(box + moves * [width, height, width, height], bounds[[0, 1, 0, 1]], bounds[[2, 3, 2, 3]])


def _stacked(rows: list[tuple[_View, list[tuple[_Object, np.ndarray]]]], shape: MaskHeadConfig, places: int) -> Batch:
    boxes = np.zeros((len(rows), places, 4), np.float32)
    targets = np.zeros((len(rows), places, shape.size, shape.size), np.float32)
    filled = np.zeros((len(rows), places), np.float32)
    for n, (view, chosen) in enumerate(rows):
        for k, (item, box) in enumerate(chosen):
            boxes[n, k] = box * np.tile(view.scale, 2)
            targets[n, k] = crop_mask(item.mask, box, shape.size, origin=item.origin)
            filled[n, k] = 1
    features = {
        name: np.stack([view.features[name] for view, _ in rows]).astype(np.float32) for name, *_ in shape.scales
    }
    return Batch(features, boxes, targets, filled)


def _weighted_mean(validate: Callable[..., MaskMetrics], params: Any, batches: list[Batch]) -> dict[str, float]:
    weights = [float(batch.filled.sum()) for batch in batches]
    metrics = jax.device_get([validate(params, batch) for batch in batches])
    return {
        f"validation_{name}": float(np.average([getattr(m, name) for m in metrics], weights=weights))
        for name in ("loss", "iou")
    }


def _best_overlap(log: Path) -> float:
    with log.open(newline="") as file:
        return max(float(row["validation_iou"]) for row in csv.DictReader(file) if row["validation_iou"])


def _finite_mean(pending: list[tuple[int, MaskMetrics]]) -> dict[str, float]:
    """Mean of the interval's metrics; one host transfer for all of its steps."""
    values = jax.device_get([m for _, m in pending])
    for (number, _), m in zip(pending, values, strict=True):
        if not (np.isfinite(m.loss) and np.isfinite(m.gradient_norm)):
            raise FloatingPointError(
                f"the loss is {m.loss} and the gradient's norm {m.gradient_norm} at step {number}; lower "
                "learning_rate, or look at the features of that step"
            )
    return {f.name: float(np.mean([getattr(m, f.name) for m in values])) for f in dataclasses.fields(MaskMetrics)}


def _digest(pictures: list[list[_View]]) -> str:
    """Of everything that a run sees of these pictures."""
    return digest_of(
        [
            [view.features, view.bounds, view.scale, [(o.box, o.mask, np.array(o.origin)) for o in view.objects]]
            for views in pictures
            for view in views
        ]
    )


def _input_size(expects: PictureInput) -> tuple[int, int]:
    if expects.height is None or expects.width is None:
        raise ValueError("a detector without a fixed input size was given; its features cannot be batched")
    return expects.height, expects.width


def _read(file: Path) -> tuple[MaskHeadConfig, dict[str, Any], dict[str, np.ndarray]]:
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .npz archive, or was cut short")
        with np.load(file) as archive:
            arrays = dict(archive)
        if "__meta__" not in arrays:
            raise ValueError("it has no entry __meta__, which says what network it is")
        meta = json.loads(str(arrays.pop("__meta__")))
        if not isinstance(meta, dict) or meta.get("format") != FORMAT or "config" not in meta:
            raise ValueError(f"its __meta__ is no description in format {FORMAT}")
        return MaskHeadConfig.from_dict(meta["config"]), dict(meta.get("notes", {})), arrays
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is no mask head ({error}); `jaxwrap train` writes them as *{SUFFIX}") from error


def _resolve(path: str | Path) -> Path:
    shipped = shipped_mask_heads()
    if str(path) in shipped:
        return shipped[str(path)]
    file = Path(path)
    if file.is_dir():
        file /= f"best{SUFFIX}"
    if not file.is_file():
        raise FileNotFoundError(
            f"no mask head at {path}; give a *{SUFFIX} file, a training folder, or a shipped name: {', '.join(shipped)}"
        )
    return file


def _described(source: Mapping[str, Any]) -> str:
    return f"{source['detector']} split after {source['split']}, weights {source['weights'] or 'of no file'}"
