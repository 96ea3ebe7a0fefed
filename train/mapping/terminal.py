"""A map run as a terminal asks for it and shows it: words checked before work, progress with an ETA, a table at the
end."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import jax
from rich.table import Table

from jaxwrap.codecs.weightmap import Mode
from jaxwrap.codecs.x26x import X26x
from jaxwrap.importance.sketch import check_sketch
from jaxwrap.importance.weights import DEFAULT_ALPHA, Scope, check_weighting
from jaxwrap.train.cluster import connected
from jaxwrap.train.evaluate.modes import mode_of
from jaxwrap.train.fit.checkpoints import load_wrapper
from jaxwrap.train.mapping import parts
from jaxwrap.train.mapping.cluster import Task, choose_shards, map_on_cluster
from jaxwrap.train.mapping.merge import Written, check_output, make_place, merge
from jaxwrap.train.mapping.plan import Plan, Shard, Sketches, parse_bytes
from jaxwrap.train.mapping.run import Work, map_shard, parts_folder, prepare
from jaxwrap.train.media import ClipReader, open_readers
from jaxwrap.train.memory import keep_memory
from jaxwrap.train.runs import console, progress_bar, warn_unreadable

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapRun:
    """What was asked for, in the words of the command line; None where nothing was said. Raises `ValueError` for words
    that make no sense, alone or together."""

    run: str
    out: Path
    inputs: Sequence[Path] = ()
    mode: Mode = "wa"
    sketches: str | None = None
    alpha: float | None = None
    scope: Scope | None = None
    period: int | None = None
    max_frames: int | None = None
    seed: int = 0
    memory: str = "2GiB"
    dtype: str = "float32"
    shard: str | None = None
    merge: int | None = None
    scheduler: str | None = None
    shards: int | None = None
    codec: str | None = None
    qp: int | None = None
    size: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"--mode {self.mode!r} was given; wanted {', '.join(get_args(Mode))}")
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype {self.dtype!r} was given; wanted {' or '.join(DTYPES)}")
        if (self.period is None) == (self.mode == "iwa"):
            raise ValueError(
                "--period, the distance of the encoder's I frames, goes with --mode iwa: give both or neither"
            )
        for name in ("codec", "qp", "size"):
            known = self.merge is not None and name == "size"  # there the parts tell the mode
            if getattr(self, name) is not None and self.mode != "calibrated" and not known:
                raise ValueError(f"--{name} was given with --mode {self.mode}; it is for calibrated")
        if self.sketches is not None and self.mode == "calibrated":
            raise ValueError("--sketches was given with --mode calibrated, which draws nothing")
        ways = [name for name in ("shard", "merge", "scheduler") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"--{' and --'.join(ways)} were given: one at a time")
        if self.shards is not None and self.scheduler is None:
            raise ValueError("--shards N was given without --scheduler; one shard by itself is --shard I/N")
        if any(number is not None and number < 1 for number in (self.merge, self.shards)):
            raise ValueError("a number of shards below 1 was given")
        late = [f"--{name}" for name in ("alpha", "scope", "size") if getattr(self, name) is not None]
        if self.shard is not None and late:
            raise ValueError(f"{', '.join(late)} given with --shard: say that with --merge, when all are done")
        if self.merge is None and not self.inputs:
            raise ValueError("Missing option '--input'")
        # Parsed again when they are used: here only so that nothing is begun in vain.
        self.number_of_sketches, self.map_size, self.chosen_shard, parse_bytes(self.memory)
        check_weighting(self.chosen_alpha, self.scope or "frame")

    @property
    def number_of_sketches(self) -> Sketches:
        """4 where nothing was said."""
        text = self.sketches or "4"
        if text == "auto":
            return "auto"
        if not re.fullmatch(r"-?\d+", text):
            raise ValueError(f"--sketches {text!r} was given; wanted a number or auto")
        check_sketch("rademacher", int(text))
        return int(text)

    @property
    def chosen_alpha(self) -> float:
        """`DEFAULT_ALPHA` where nothing was said."""
        return DEFAULT_ALPHA if self.alpha is None else self.alpha

    @property
    def chosen_shard(self) -> Shard | None:
        """``--shard I/N``."""
        return None if self.shard is None else Shard.parse(self.shard)

    @property
    def map_size(self) -> tuple[int, int] | None:
        """``--size WIDTHxHEIGHT`` as (height, width)."""
        if self.size is None:
            return None
        match = re.fullmatch(r"(\d+)[x×](\d+)", self.size)
        if match is None:
            raise ValueError(f"--size {self.size!r} was given; wanted WIDTHxHEIGHT, such as 960x540")
        return int(match[2]), int(match[1])


def run_maps(asked: MapRun) -> None:
    """Does what was asked for, in this process or on a cluster, and prints what came of it."""
    folder = parts_folder(asked.out)
    if asked.merge is not None:
        _show(_merged(asked, folder, asked.merge))
        return
    make_place(asked.out)
    keep_memory()
    shard = asked.chosen_shard
    codec = X26x(asked.codec or "x265") if asked.mode == "calibrated" else None  # type: ignore[arg-type]
    wrapper, _ = load_wrapper(asked.run, dtype=asked.dtype)
    clips, unreadable = open_readers(asked.inputs, max_frames=asked.max_frames)
    work = prepare(
        mode_of(wrapper),
        clips,
        mode=asked.mode,
        receiver=f"post-processor of {asked.run}" + (f" in {asked.dtype}" if asked.dtype != DTYPES[0] else ""),
        sketches=asked.number_of_sketches,
        seed=asked.seed,
        period=1 if asked.period is None else asked.period,
        memory=parse_bytes(asked.memory),
        devices=None if asked.scheduler else _accelerators(),  # workers have their own
        codec=codec,
        qp=32.0 if asked.qp is None else float(asked.qp),
        # Of a calibrated map, whose size is said with --merge, shards have nothing to check.
        check=lambda plan: (
            None if shard and plan.mode == "calibrated" else check_output(plan, asked.out, asked.map_size)
        ),
    )
    if asked.scheduler is not None:
        shards = asked.shards or choose_shards(work.plan, folder)
    else:
        shards = 1 if shard is None else shard.of
    if others := [of for of in parts.divisions(folder) if of != shards]:
        console.print(
            f"[yellow]note:[/] {folder} holds parts of a run in {' and in '.join(map(str, others))}, which are of no "
            f"use to one in {shards}: what they hold is computed again",
            soft_wrap=True,
            highlight=False,
        )
    if asked.scheduler is not None:
        _on_cluster(asked, asked.scheduler, work, clips, folder, shards)
    else:
        _here(work, folder, shard or Shard())
    if shard is not None:
        console.print(
            f"shard {shard.number} of {shard.of} is done, in {folder}. When all are: "
            f"jaxwrap importance --merge {shard.of} --out {asked.out}",
            soft_wrap=True,
        )
    else:
        _show(_merged(asked, folder, shards))
    warn_unreadable(unreadable)


def _accelerators() -> list[jax.Device] | None:
    """Devices that share each batch: all of this machine, where they are not its CPU and there are several."""
    devices = jax.local_devices()
    return devices if jax.default_backend() != "cpu" and len(devices) > 1 else None


def _here(work: Work, folder: Path, shard: Shard) -> None:
    with progress_bar() as bar:
        total, done = _progress(work.plan, folder, [shard])
        task = bar.add_task("maps", total=total, completed=done, note=_note(work.plan))
        map_shard(work, folder, shard, advance=lambda maps: bar.advance(task, maps))


def _on_cluster(
    asked: MapRun, address: str, work: Work, clips: Sequence[ClipReader], folder: Path, shards: int
) -> None:
    by_name = {clip.name: dataclasses.replace(clip, source=clip.source.absolute()) for clip in clips}
    task = Task(
        run=str(Path(asked.run).absolute()) if Path(asked.run).exists() else asked.run,
        dtype=asked.dtype,
        plan=work.plan,
        clips=tuple(by_name[planned.name] for planned in work.plan.clips),
        folder=folder.absolute(),
    )
    with connected(address) as client, progress_bar() as bar:
        all_shards = [Shard(n, shards) for n in range(1, shards + 1)]
        total, done = _progress(work.plan, folder, all_shards)
        progress = bar.add_task("maps", total=total, completed=done, note=f"{_note(work.plan)}, {shards} shards")
        map_on_cluster(task, all_shards, client, advance=lambda maps: bar.advance(progress, maps))


def _progress(plan: Plan, folder: Path, shards: Iterable[Shard]) -> tuple[int, int]:
    """Maps of these shards in all, and those that are done."""
    units, total = plan.units(), 0
    shares = {shard: shard.share(units) for shard in shards}
    for share in shares.values():
        total += sum(piece.stop - piece.start for n in share for chunk in units[n] for piece in chunk)
    return total, parts.maps_done(folder, shares)


def _note(plan: Plan) -> str:
    how = f"{plan.codec.split()[0]} at QP {plan.qp:g}" if plan.codec else f"{plan.sketches} sketches"
    return f"{how}, batches of {', '.join(map(str, sorted({clip.batch for clip in plan.clips})))}"


def _merged(asked: MapRun, folder: Path, shards: int) -> list[Written]:
    return merge(folder, shards, asked.out, alpha=asked.chosen_alpha, scope=asked.scope or "frame", size=asked.map_size)


def _show(written: Sequence[Written]) -> None:
    table = Table("file", "size", "maps", "frames", "relative error, or what it found")
    for item in written:
        info, error = item.info, item.info.details.get("relative_standard_error_of_16x16_means")
        if (half := info.details.get("relative_half_width_of_interval_if_frames_are_independent")) is not None:
            level = info.details["interval_level"]
            words = f"± {100 * half:.1f} % ({100 * level:.0f} % interval if frames are independent)"
        elif info.mode == "calibrated":
            raw = info.details["plane_weights"]
            words = "raw weights  " + "  ".join(f"{n} {w / max(raw):.2f}" for n, w in zip("yuv", raw, strict=True))
        else:
            words = "—" if error is None else f"{error:.2f} of 16×16 means"
        table.add_row(str(item.path), f"{info.width}×{info.height}", str(info.maps), str(info.details["frames"]), words)
    console.print(table)
    for note in (note for item in written for note in item.notes):
        console.print(f"[yellow]note:[/] {note}", soft_wrap=True, highlight=False)
