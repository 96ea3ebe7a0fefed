"""Map runs from clips to files: against maps made by hand, whole against divided, interrupted against not."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import re
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxwrap.arrays import Frame, Yuv420, num_frames, size_of
from jaxwrap.codec import EncodeRequest, EncodeResult
from jaxwrap.codecs.weightmap import read_maps
from jaxwrap.importance import ImportanceMap, batched_importance_maps, importance_map, yuv_metric
from jaxwrap.pipeline import Sandwich
from jaxwrap.samples import change_bit_depth, normalise
from jaxwrap.train.mapping import merge as merge_module
from jaxwrap.train.mapping import parts, plan
from jaxwrap.train.mapping.cluster import choose_shards
from jaxwrap.train.mapping.collect import record_bytes
from jaxwrap.train.mapping.merge import check_output, merge
from jaxwrap.train.mapping.networks import BottleneckMaps
from jaxwrap.train.mapping.plan import Shard
from jaxwrap.train.mapping.run import Work, map_clips, map_shard, parts_folder, prepare
from jaxwrap.train.media import Clip

pytestmark = pytest.mark.usefixtures("optimised_programs")


def halved(frame: Frame) -> Frame:
    """A pre-processor: means of 2×2."""
    return jax.tree.map(lambda p: p.reshape(p.shape[0], p.shape[1] // 2, 2, p.shape[2] // 2, 2).mean((2, 4)), frame)


@dataclasses.dataclass(frozen=True)
class Enlarged:
    """A post-processor whose derivative depends on the picture, with neighbours that overlap."""

    size: tuple[int, int]

    def __call__(self, frame: Frame) -> Frame:
        def plane(p: jax.Array) -> jax.Array:
            mixed = jnp.tanh(p + 0.5 * jnp.roll(p, 1, 2) * p)
            return jnp.repeat(jnp.repeat(mixed, 2, 1), 2, 2)

        return jax.tree.map(plane, frame)


@dataclasses.dataclass(frozen=True)
class TinyMode:
    """Half-size, and quick to compile."""

    ratio = Fraction(1, 2)
    pre_hash = "halved"
    post_hash = "enlarged"

    def sandwich(self, height: int, width: int) -> Sandwich:
        return Sandwich(halved, Enlarged((height, width)), 10)


def samples(frames: int, height: int = 16, width: int = 24, seed: int = 0) -> Yuv420:
    rng = np.random.default_rng(seed + frames + 7 * height)
    shapes = (height, width), (height // 2, width // 2), (height // 2, width // 2)
    return Yuv420(*(rng.integers(0, 256, (frames, *shape), dtype=np.uint8) for shape in shapes))


def clip(name: str, frames: int, height: int = 16, width: int = 24, seed: int = 0) -> Clip:
    return Clip(name, samples(frames, height, width, seed), 8, 25.0, Path(name))


@dataclasses.dataclass(frozen=True)
class Claiming:
    """A clip whose file says that it has another number of frames than it has."""

    clip: Clip
    num_frames: int
    started: list[int] = dataclasses.field(default_factory=list)

    name = property(lambda self: self.clip.name)
    size = property(lambda self: self.clip.size)
    bit_depth = property(lambda self: self.clip.bit_depth)

    def read(self, start: int = 0, *, step: int = 1) -> Iterator[Frame]:
        self.started.append(start)
        return self.clip.read(start, step=step)

    def fingerprint(self) -> str:
        return self.clip.fingerprint()


@pytest.fixture(autouse=True)
def batches_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """No analysis of memory, which compiles: two frames at a time."""
    monkeypatch.setattr(BottleneckMaps, "frames_within", lambda self, size, memory, frames, padded=False: 2)


def work_of(*clips: Any, mode: Any = "wa", **options: Any) -> Work:
    return prepare(TinyMode(), clips, mode=mode, receiver="tiny", **{"sketches": 2, "seed": 5, **options})


def raw_maps(frames: Frame, *, first: int = 0) -> ImportanceMap:
    """`importance_map` of a clip, in pairs of frames, so that the code that runs use is compiled for it already."""
    sandwich = TinyMode().sandwich(*size_of(frames))
    found = []
    for n in range(0, num_frames(frames), 2):
        pair = jax.tree.map(lambda p, n=n: p[np.minimum([n, n + 1], len(p) - 1)], frames)
        z = sandwich.bottleneck(normalise(change_bit_depth(pair, 8, 10), 10))
        found.append(
            importance_map(
                sandwich.receive, z, key=jax.random.key(5), sketches=2, metric=yuv_metric, frame_offset=first + n
            )
        )
    return jax.tree.map(lambda *p: np.concatenate(p)[: num_frames(frames)], *found)


def mean_of(h: Any) -> np.ndarray:
    """Over all samples of all planes of each picture, by hand."""
    return np.concatenate([np.asarray(p, np.float64).reshape(len(p), -1) for p in h.planes], axis=1).mean(1)


def bytes_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def done(work: Work, out: Path, **options: Any) -> Any:
    return map_clips(work, out, **{"alpha": 0.5, "scope": "frame", **options})


def test_weights_are_those_of_the_maps_of_the_whole_clip(tmp_path: Path) -> None:
    video = clip("video", 5)
    (written,) = done(work_of(video), tmp_path / "video.dat")
    read, info = read_maps(tmp_path / "video.dat", size=(8, 12))
    whole = raw_maps(video.frames)
    mean = mean_of(whole.h)
    for plane, h in zip(read.planes, whole.h.planes, strict=True):
        # Other batches are rounded elsewhere: a few units in the last place of float32.
        np.testing.assert_allclose(plane, (h / mean[:, None, None] + 0.5) / 1.5, rtol=2e-6)
    assert (info, info.mode, info.sketches, info.receiver) == (written.info, "wa", 2, "tiny")
    errors = np.concatenate([np.asarray(p).reshape(5, -1) for p in whole.standard_error.planes], axis=1)
    assert info.standard_error == pytest.approx(np.mean(np.sqrt(np.square(errors).mean(1)) / mean), rel=1e-5)
    assert info.details["relative_standard_error_of_16x16_means"] == pytest.approx(
        float(np.mean(whole.relative_block_error())), rel=1e-5
    )
    assert (info.details["frames"], info.details["clips"], written.notes) == (5, {"video": 5}, ())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["video.dat", "video.json"]


def test_scope_sequence_divides_the_maps_of_a_clip_by_one_mean(tmp_path: Path) -> None:
    clips = clip("a", 3), clip("b", 2, seed=9)
    done(work_of(*clips), tmp_path / "m.dat", scope="sequence")
    read, _ = read_maps(tmp_path / "m.dat")
    for first, part in ((0, clips[0]), (3, clips[1])):
        h = raw_maps(part.frames, first=first).h
        wanted = (np.asarray(h.y) / mean_of(h).mean() + 0.5) / 1.5
        np.testing.assert_allclose(read.y[first : first + part.num_frames], wanted, rtol=2e-6)


def test_a_folder_gets_a_file_per_clip_at_its_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST_SIZES", 1)  # fewer to compile
    sizes = [(16, 24), (12, 20), (16, 24), (16, 20), (12, 20)]
    pictures = [clip(f"x/p{i}", 1, *size) for i, size in enumerate(sizes)]
    work = work_of(*pictures, clip("video", 3))
    by_name = {planned.name: planned for planned in work.plan.clips}
    assert [by_name[picture.name].canvas for picture in pictures] == [(16, 24)] * 5
    assert by_name["video"].canvas is None
    done(work, tmp_path / "maps")
    assert sorted(bytes_of(tmp_path / "maps")) == sorted(
        f"{name}.{kind}" for name in [*(f"x_p{i}" for i in range(5)), "video"] for kind in ("dat", "json")
    )
    offsets = dict(zip((planned.name for planned in work.plan.clips), work.plan.offsets(), strict=True))
    sandwich = TinyMode().sandwich(16, 24)
    for picture in pictures:
        z = sandwich.bottleneck(normalise(change_bit_depth(picture.frames, 8, 10), 10))
        h = batched_importance_maps(
            lambda height, width: sandwich.receive, [z, z], key=jax.random.key(5), sketches=2,
            metric=yuv_metric, size=(8, 12), frame_offset=offsets[picture.name],
        )[0].h  # fmt: skip
        read, info = read_maps(tmp_path / "maps" / f"{picture.name.replace('/', '_')}.dat")
        assert (info.height, info.width) == (picture.size[0] // 2, picture.size[1] // 2)
        np.testing.assert_allclose(read.y, (np.asarray(h.y) / mean_of(h)[0] + 0.5) / 1.5, rtol=2e-6)


@pytest.mark.parametrize("mode", ["wa", "iwa", "fwa"])
def test_shards_merge_to_the_bytes_of_the_undivided_run(tmp_path: Path, mode: str) -> None:
    clips = clip("a", 9), clip("b", 1), clip("c", 1, seed=3), clip("d", 6, seed=4)
    work = work_of(*clips, mode=mode, period=2 if mode == "iwa" else 1)
    done(work, tmp_path / "whole.dat")
    for number in (3, 1, 4, 2):  # in any order
        map_shard(work, parts_folder(tmp_path / "divided.dat"), Shard(number, 4))
    merge(parts_folder(tmp_path / "divided.dat"), 4, tmp_path / "divided.dat", alpha=0.5, scope="frame")
    for suffix in ("dat", "json"):
        whole, divided = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("whole", "divided"))
        assert whole == divided
    maps = {"wa": 17, "iwa": 10, "fwa": 1}[mode]
    assert read_maps(tmp_path / "whole.dat")[1].maps == maps
    assert not parts_folder(tmp_path / "divided.dat").exists()


def test_iwa_maps_are_those_that_every_period_th_frame_has_in_mode_wa(tmp_path: Path) -> None:
    clips = clip("a", 8), clip("b", 2, seed=3), clip("c", 3, seed=4), clip("d", 4, seed=5)  # b and c share a batch
    (written,) = done(work_of(*clips, mode="iwa", period=3), tmp_path / "iwa.dat")
    done(work_of(*clips), tmp_path / "wa.dat")
    iwa, wa = (read_maps(tmp_path / f"{name}.dat")[0] for name in ("iwa", "wa"))
    # The frames of a (8), b, c and d have places from 0, 8, 10 and 13 on. CPU code does not depend on the batch.
    for found, every in zip(iwa.planes, wa.planes, strict=True):
        np.testing.assert_array_equal(found, every[[0, 3, 6, 8, 10, 13, 16]])
    assert (written.info.mode, written.info.maps, written.info.details["period"]) == ("iwa", 7, 3)


def test_a_frozen_map_is_the_mean_of_all_frames_with_its_interval(tmp_path: Path) -> None:
    clips = clip("a", 3), clip("b", 4, seed=9)
    (written,) = done(work_of(*clips, mode="fwa"), tmp_path / "fwa.dat")
    read, info = read_maps(tmp_path / "fwa.dat")
    parts_of_h = [raw_maps(clips[0].frames).h, raw_maps(clips[1].frames, first=3).h]
    h = jax.tree.map(lambda *p: np.concatenate([np.asarray(q, np.float64) for q in p]), *parts_of_h)
    mean = jax.tree.map(lambda p: p.mean(0, keepdims=True), h)
    level = mean_of(mean)[0]
    np.testing.assert_allclose(read.v, (mean.v / level + 0.5) / 1.5, rtol=2e-6)
    error = np.concatenate([stats.sem(p, axis=0).ravel() for p in h.planes])
    assert info.standard_error == pytest.approx(np.sqrt(np.mean(error**2)) / level, rel=1e-5)
    low, high = (
        np.concatenate([p.ravel() for p in side])
        for side in zip(*(stats.t.interval(0.95, 6, p.mean(0), stats.sem(p, axis=0)) for p in h.planes), strict=True)
    )
    half = np.mean(high - np.maximum(low, 0)) / 2 / level  # weights are not negative, nor is their interval
    assert info.details["relative_half_width_of_interval_if_frames_are_independent"] == pytest.approx(half, rel=1e-5)
    assert (info.maps, info.details["frames"]) == (1, 7)
    assert "takes frames of one clip for independent pictures" in " ".join(written.notes)


def test_the_interval_over_pictures_needs_no_note(tmp_path: Path) -> None:
    (written,) = done(work_of(clip("a", 1), clip("b", 1, seed=9), mode="fwa"), tmp_path / "fwa.dat")
    assert written.notes == ()


class Coarse:
    """A codec that rounds samples to multiples of 16."""

    name, version = "coarse", "1"

    def check(self, size: tuple[int, int], request: EncodeRequest) -> None:
        assert request.qp == 30.0

    def encode(self, frames: Frame, request: EncodeRequest) -> EncodeResult:
        decoded = jax.tree.map(lambda p: (p + 8) // 16 * 16, frames)
        return EncodeResult(decoded, np.zeros(num_frames(frames), np.int64))


def test_a_calibrated_map_is_one_weight_per_plane_from_the_codecs_own_errors(tmp_path: Path) -> None:
    clips = clip("a", 3), clip("b", 1, 24, 16), clip("c", 2, seed=8)
    work = work_of(*clips, mode="calibrated", codec=Coarse(), qp=30.0)
    with pytest.raises(ValueError, match=r"one calibrated map .* say with --size"):
        check_output(work.plan, tmp_path / "c.dat")
    (written,) = done(work, tmp_path / "c.dat", size=(6, 10), alpha=0.0)
    up, down = np.zeros(3), np.zeros(3)

    @jax.jit
    def sums(z: Frame, q: Frame) -> tuple[jax.Array, jax.Array]:
        receive = TinyMode().sandwich(*(2 * side for side in size_of(z))).receive
        metric = yuv_metric(receive(z))
        _, whole = jax.jvp(receive, (z,), (q,))
        inner = []
        for i in range(3):
            alone = Yuv420(*(p if i == j else jnp.zeros_like(p) for j, p in enumerate(q.planes)))
            _, moved = jax.jvp(receive, (z,), (alone,))
            inner.append(
                sum(w * (a * b).sum() for w, a, b in zip(metric.planes, moved.planes, whole.planes, strict=True))
            )
        return jnp.stack(inner), jnp.stack([(p * p).sum() for p in q.planes])

    for part in clips:
        z = TinyMode().sandwich(*part.size).bottleneck(normalise(change_bit_depth(part.frames, 8, 10), 10))
        for n in range(part.num_frames):
            one = jax.tree.map(lambda p, n=n: np.asarray(p)[n : n + 1], z)
            rounded = jax.tree.map(lambda p: np.floor(p + np.float32(0.5)).astype(np.uint16), one)
            decoded = jax.tree.map(lambda p: (p + 8) // 16 * 16, rounded)
            a, b = sums(one, jax.tree.map(lambda d, p: d.astype(np.float32) - p, decoded, one))
            up, down = up + np.asarray(a, np.float64), down + np.asarray(b, np.float64)
    weights = np.array(written.info.details["plane_weights"])
    np.testing.assert_allclose(weights, up / down, rtol=1e-4)  # float32 sums of a thousand products
    read, info = read_maps(tmp_path / "c.dat", size=(6, 10))
    normalised = np.repeat(weights, [60, 15, 15]) / np.repeat(weights, [60, 15, 15]).mean()
    np.testing.assert_allclose(np.concatenate([p.ravel() for p in read.planes]), normalised, rtol=1e-5)
    assert (info.mode, info.sketches, info.details["qp"], info.details["codec"]) == ("calibrated", 0, 30.0, "coarse 1")
    assert info.details["frames"] == 6


class Stopped(Exception):
    """What an interruption raises here."""


def stop(maps: int) -> None:
    raise Stopped


def interrupted(work: Work, folder: Path, after: int) -> None:
    left = iter(range(after))

    def advance(maps: int) -> None:
        if next(left, None) is None:
            raise Stopped

    with pytest.raises(Stopped):
        map_shard(work, folder, Shard(), advance=advance)


@pytest.mark.parametrize("mode", ["wa", "fwa"])
@pytest.mark.parametrize("damage", ["none", "torn", "data lost"])
def test_a_resumed_run_gives_the_bytes_of_an_uninterrupted_one(tmp_path: Path, mode: str, damage: str) -> None:
    video = clip("video", 11)
    done(work_of(video, mode=mode), tmp_path / "whole.dat")
    out = tmp_path / "again.dat"
    folder = parts_folder(out)
    interrupted(work_of(video, mode=mode), folder, 3)
    interrupted(work_of(video, mode=mode), folder, 1)
    kept = 4
    if damage == "torn":  # what an outage leaves of what was being written
        with (folder / "1of1.maps").open("ab") as data, (folder / "1of1.journal").open("ab") as journal:
            data.write(b"half a record")
            journal.write(b'{"unit": 4, "counts": [2], "num_')
    if damage == "data lost":
        data_path = folder / "1of1.maps"
        data_path.write_bytes(data_path.read_bytes()[:-1])
        kept = 3
    advanced: list[int] = []
    source = Claiming(video, 11)
    done(work_of(source, mode=mode), out, advance=advanced.append)
    assert sum(advanced) == 11 - 2 * kept  # no map of what was kept is computed again
    assert source.started == [2 * kept]
    for suffix in ("dat", "json"):
        assert out.with_suffix(f".{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()


@pytest.mark.parametrize("says", [20, 13, 7, 6, 2])
@pytest.mark.parametrize("shards", [1, 3])
def test_all_frames_that_decode_are_mapped_whatever_the_file_says(tmp_path: Path, says: int, shards: int) -> None:
    """The clip has 7 frames."""
    liar = Claiming(clip("liar", 7), says)
    work = work_of(liar)
    for number in range(1, shards + 1):
        map_shard(work, tmp_path / "parts", Shard(number, shards))
    (written,) = merge(tmp_path / "parts", shards, tmp_path / "m.dat", alpha=0.5, scope="frame")
    done(work_of(liar.clip), tmp_path / "honest.dat")
    assert (tmp_path / "m.dat").read_bytes() == (tmp_path / "honest.dat").read_bytes()
    if says == 7:
        assert written.notes == ()
    else:
        assert len(written.notes) == 1
        assert f"liar: its file says that it holds {says} frames; 7 of {says} maps" in written.notes[0]


class Alive:
    """Counts how many of the arrays that it was shown are still held by someone, at most."""

    def __init__(self) -> None:
        self._arrays: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._numbers = itertools.count()
        self.most = 0

    def show(self, array: np.ndarray) -> None:
        self._arrays[next(self._numbers)] = array
        self.most = max(self.most, len(self._arrays))


def test_memory_does_not_grow_with_the_length_of_the_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that are read, maps that are made, records of these on disk, maps that are merged."""
    maps, read_record, append = BottleneckMaps.maps, merge_module.read_record, parts.Part.append
    most: dict[int, tuple[int, ...]] = {}

    for length in (20, 120):
        frames, made, merged, longest = Alive(), Alive(), Alive(), [0]

        @dataclasses.dataclass(frozen=True)
        class Endless:
            num_frames: int
            name, size, bit_depth = "endless", (16, 24), 8
            seen: Alive = frames

            def fingerprint(self) -> str:
                return "endless"

            def read(self, start: int = 0, *, step: int = 1) -> Iterator[Frame]:
                for n in range(start, self.num_frames, step):
                    frame = samples(1, seed=n)
                    self.seen.show(frame.y)
                    yield frame
                    del frame

        def watched_maps(*args: Any, seen: Alive = made, **options: Any) -> list[ImportanceMap]:
            found = maps(*args, **options)
            for item in found:
                seen.show(item.h.y)
            return found

        def watched_append(part: Any, record: bytes, *, seen: list[int] = longest, **options: Any) -> None:
            seen.append(len(record))
            append(part, record, **options)

        def watched_record(*args: Any, seen: Alive = merged) -> Any:
            statistics, h = read_record(*args)
            seen.show(h.y)
            return statistics, h

        monkeypatch.setattr(BottleneckMaps, "maps", watched_maps)
        monkeypatch.setattr(parts.Part, "append", watched_append)
        monkeypatch.setattr(merge_module, "read_record", watched_record)
        gc.collect()
        work = work_of(Endless(length))
        done(work, tmp_path / f"{length}.dat", scope="sequence")
        most[length] = frames.most, made.most, max(longest) // record_bytes(work.plan.clips[0]), merged.most
    # A batch that waits, one that is being read (its frames, and their copy), one that is computed: of 2 frames each.
    # Maps of the batch before, and of this one. A record is a batch. A map that is read, and the one before it, which
    # still has its name.
    assert all(found <= limit for found, limit in zip(most[120], (8, 2, 2, 3), strict=True)), most
    assert most[120] <= most[20]


def test_a_run_that_fails_stops_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    class Watched(Claiming):
        def read(self, start: int = 0, *, step: int = 1) -> Iterator[Frame]:
            try:
                yield from super().read(start, step=step)
            finally:
                closed.append(True)

    def fails(*args: Any, **options: Any) -> list[ImportanceMap]:
        raise Stopped

    monkeypatch.setattr(BottleneckMaps, "maps", fails)
    with pytest.raises(Stopped) as error:
        map_shard(work_of(Watched(clip("video", 40), 40)), tmp_path, Shard())
    assert error.tb is not None  # which holds the frames of the failed call, and all that these hold
    assert closed == [True]


def test_clips_whose_maps_would_have_one_name_are_refused(tmp_path: Path) -> None:
    plan = work_of(clip("a/b", 2), clip("c", 2), clip("a_b", 2, seed=4)).plan
    with pytest.raises(ValueError, match=r"maps of a/b and those of a_b would both go to .*a_b\.dat: rename"):
        check_output(plan, tmp_path / "folder")
    check_output(plan, tmp_path / "one.dat")


def test_memory_of_padded_frames_counts_a_metric_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight for every sample, beside what frames of one size need."""
    monkeypatch.undo()
    networks = BottleneckMaps(TinyMode(), sketches=2, seed=0)
    needed = []
    for padded in (False, True):
        with pytest.raises(ValueError, match="one frame of this receiver needs") as error:
            networks.frames_within((16, 24), 1, 5, padded=padded)
        needed.append(int(re.findall(r"needs ([\d,]+) bytes", str(error.value))[0].replace(",", "")))
    # A float32 each, of which the three that are one for a plane are there without padding, too.
    assert needed[1] - needed[0] >= 4 * (16 * 24 * 3 // 2 - 3)


def test_a_run_is_divided_as_its_parts_are(tmp_path: Path) -> None:
    work = work_of(clip("video", 11))
    assert choose_shards(work.plan, tmp_path / "parts") == len(work.plan.units()) == 6
    many = dataclasses.replace(work.plan, clips=(dataclasses.replace(work.plan.clips[0], frames=1000),))
    assert choose_shards(many, tmp_path / "parts") == 32
    map_shard(work, tmp_path / "parts", Shard(2, 3))
    assert choose_shards(work.plan, tmp_path / "parts") == 3
    with pytest.raises(Stopped):
        map_shard(work, tmp_path / "parts", Shard(1, 2), advance=stop)
    assert parts.divisions(tmp_path / "parts") == [3, 2]


def test_parts_of_another_run_are_refused(tmp_path: Path) -> None:
    video = clip("video", 3)
    map_shard(work_of(video), tmp_path, Shard(1, 2))
    with pytest.raises(ValueError, match=r"parts of another run, different in sketches \(2 there, 4 now\). Remove"):
        map_shard(work_of(video, sketches=4), tmp_path, Shard(1, 2))
    with pytest.raises(ValueError, match="different in the clips themselves"):
        map_shard(work_of(clip("video", 3, seed=1)), tmp_path, Shard(2, 2))


def test_only_finished_shards_are_merged(tmp_path: Path) -> None:
    work = work_of(clip("video", 9))
    folder, out = tmp_path / "parts", tmp_path / "m.dat"
    options: dict[str, Any] = {"alpha": 1.0, "scope": "frame"}
    with pytest.raises(ValueError, match=r"lacks shards 1, 2 of 2: run them with --shard I/2 first"):
        merge(folder, 2, out, **options)
    map_shard(work, folder, Shard(2, 2))
    with pytest.raises(ValueError, match=r"lacks shard 1 of 2"):
        merge(folder, 2, out, **options)
    map_shard(work, folder, Shard(1, 2))
    journal = folder / "1of2.journal"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"shard 1 of 2 in .* did not finish"):
        merge(folder, 2, out, **options)
    map_shard(work, folder, Shard(1, 2))
    data = folder / "2of2.maps"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"2of2\.maps ends before unit 4"):
        merge(folder, 2, out, **options)
    (folder / "2of2.plan.json").write_text("{}")
    with pytest.raises(ValueError, match=r"2of2\.plan\.json: that is no plan"):
        merge(folder, 2, out, **options)
    assert not out.exists()


def test_maps_of_several_sizes_are_no_single_file(tmp_path: Path) -> None:
    clips = clip("a", 2), clip("b", 2, 24, 16)
    with pytest.raises(ValueError, match=r"m\.dat was asked for of clips whose maps are 12×8 \(a\), 8×12 \(b\): give"):
        check_output(work_of(*clips).plan, tmp_path / "m.dat")
    check_output(work_of(*clips).plan, tmp_path / "folder")
    with pytest.raises(ValueError, match="one frozen map was asked for"):
        check_output(work_of(*clips, mode="fwa").plan, tmp_path / "folder")
    with pytest.raises(ValueError, match=r"a size of 10×6 was given; wanted .* mode calibrated"):
        check_output(work_of(clips[0]).plan, tmp_path / "m.dat", (6, 10))


def test_two_processes_do_not_write_one_shard(tmp_path: Path) -> None:
    """A worker that was given up for lost may still be there."""
    work = work_of(clip("video", 1))
    # Two open files, like two processes.
    first, second = (parts.Part(tmp_path, work.plan, Shard(), patience=0.2) for _ in range(2))
    with first, pytest.raises(RuntimeError, match="another process is at shard 1 of 1"):
        second.__enter__()
    map_shard(work, tmp_path, Shard())


def test_sketches_auto_are_counted(tmp_path: Path) -> None:
    done(work_of(clip("video", 2), sketches="auto"), tmp_path / "m.dat")
    info = json.loads((tmp_path / "m.json").read_text())
    assert 4 <= info["details"]["mean_sketches"] <= info["sketches"] <= 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "frame"}, "'frame' was given; known: wa"),
        ({"sketches": 0}, "0 sketches were asked for"),
        ({"mode": "iwa", "period": 0}, "a period of 0 frames"),
        ({"mode": "calibrated"}, "wants a codec"),
    ],
)
def test_settings_without_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        work_of(clip("video", 2), **options)
