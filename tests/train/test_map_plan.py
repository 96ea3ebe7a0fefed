"""Plans of map runs: every map once and in order, however the run is divided."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

from jaxwrap.train.mapping.plan import (
    FROZEN_UNITS,
    MOST_SIZES,
    Plan,
    PlannedClip,
    Shard,
    choose_canvases,
    parse_bytes,
)


def planned(frames: int, batch: int, *, size: tuple[int, int] = (16, 32), canvas: tuple[int, int] | None = None):
    half = size[0] // 2, size[1] // 2
    return PlannedClip(f"clip of {frames}", "hash", frames, size, half, canvas, batch)


def plan_of(*clips: PlannedClip, mode="wa", period: int = 1) -> Plan:
    return Plan(mode, 4, 0, period, "test", "network", "cpu", clips)


MIXTURE = (planned(7, 3), planned(1, 4), planned(1, 4), planned(5, 5), *[planned(1, 4)] * 9, planned(100, 6))


@pytest.mark.parametrize("mode", ["wa", "fwa", "calibrated"])
@pytest.mark.parametrize("shards", [1, 2, 3, 7, 40])
def test_shards_share_every_map_once_and_in_order(mode, shards):
    plan = plan_of(*MIXTURE, mode=mode)
    units = plan.units()
    shares = [Shard(n, shards).share(units) for n in range(1, shards + 1)]
    chunks = [chunk for share in shares for n in share for chunk in units[n]]
    found = [(piece.clip, n) for chunk in chunks for piece in chunk for n in range(piece.start, piece.stop)]
    assert found == [(clip, n) for clip, planned in enumerate(MIXTURE) for n in range(planned.frames)]
    assert max(sum(piece.stop - piece.start for piece in chunk) for chunk in chunks) <= 6
    assert [piece.clip for chunk in chunks for piece in chunk if piece.last] == list(range(len(MIXTURE)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert len(units) == (min(FROZEN_UNITS, len(chunks)) if mode != "wa" else len(chunks))
    assert plan.num_maps == len(found)
    assert plan.offsets() == [found.index((clip, 0)) for clip in range(len(MIXTURE))]


def test_pictures_share_batches_only_with_their_like():
    other = [planned(1, 4, size=(32, 16))] * 2
    padded = [planned(1, 4, size=size, canvas=(32, 32)) for size in ((32, 16), (16, 32), (8, 8))]
    plan = plan_of(*[planned(1, 4)] * 5, *other, *padded, planned(3, 2))
    sizes = [len(chunk) for unit in plan.units() for chunk in unit]
    assert sizes == [4, 1, 2, 3, 1, 1]


def test_a_period_leaves_the_maps_of_its_first_frames():
    plan = plan_of(planned(7, 2), planned(8, 2), planned(9, 2), mode="iwa", period=4)
    assert [plan.maps_of(clip) for clip in range(3)] == [2, 2, 3]
    assert plan.offsets() == [0, 7, 15]


def test_a_plan_comes_back_from_json():
    plan = dataclasses.replace(plan_of(*MIXTURE, planned(1, 2, canvas=(64, 64))), codec="x265 4", qp=32.0)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    for damage in ({}, {**plan.to_dict(), "more": 1}, {**plan.to_dict(), "clips": [{"name": "a"}]}, [], None):
        with pytest.raises(ValueError, match="no plan of a map run"):
            Plan.from_dict(damage)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'frame' was given; known: wa, iwa, fwa, calibrated"):
        Plan.from_dict({**plan.to_dict(), "mode": "frame"})


def test_what_differs_between_plans_is_named():
    plan = plan_of(planned(7, 3))
    assert "sketches (4 there, 8 now)" in dataclasses.replace(plan, sketches=8).difference(plan)
    for change, words in (({"fingerprint": "x"}, "the clips themselves"), ({"frames": 6}, "the number of frames"),
                          ({"batch": 2}, "--memory")):  # fmt: skip
        other = dataclasses.replace(plan, clips=(dataclasses.replace(plan.clips[0], **change),))
        assert words in other.difference(plan)


def test_few_sizes_keep_their_own_and_many_share_canvases_of_their_kind():
    few = [(10, 20), (20, 10), (10, 10), (4, 4)]
    assert len(few) == MOST_SIZES
    assert choose_canvases(few * 3) == dict.fromkeys(few)
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in 2 * rng.integers(20, 1000, (300, 2))]
    canvases = choose_canvases(sizes)
    assert set(canvases) == set(sizes)
    for (h, w), canvas in canvases.items():
        assert canvas is not None
        assert canvas[0] >= h
        assert canvas[1] >= w
        # Sides within one kind and a factor 3 of area: the bounding box can waste more only for slender pictures.
    square = [size for size in sizes if 0.5 < size[0] / size[1] < 2]
    wasted = sum(np.prod(canvases[size]) for size in square) / sum(np.prod(size) for size in square)  # type: ignore[arg-type]
    assert wasted < 4
    assert len(set(canvases.values())) <= 16  # not one for each


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 << 30), ("500MB", 500_000_000), ("1.5 gb", 1_500_000_000), ("4096", 4096), ("10KiB", 10240), ("7b", 7)],
)
def test_sizes_of_memory_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "2 GiBs", "-1GB", "0", "1e9", "GB", "2iB"])
def test_other_sizes_of_memory_are_refused(text):
    with pytest.raises(ValueError, match="wanted a size such as 2GiB or 500MB"):
        parse_bytes(text)


def test_shards_are_read_and_bad_ones_refused():
    assert Shard.parse("2/8") == Shard(2, 8)
    for text in ("0/4", "5/4", "2", "a/b", "-1/3", "1/0", "1/2/3"):
        with pytest.raises(ValueError, match="wanted I/N with 1 ≤ I ≤ N"):
            Shard.parse(text)


def test_a_file_of_one_size_names_the_sizes_that_came():
    clips = [dataclasses.replace(planned(1, 1, size=(h, 16)), name=f"p{h}") for h in (8, 16, 24, 32, 40, 48)]
    plan_of(*clips[:1]).require_one_size("a", "b")
    with pytest.raises(ValueError, match=r"8×4 \(p8\), 8×8 \(p16\), .* and 2 more: give one"):
        plan_of(*clips).require_one_size("one file", "give one")


def test_units_of_the_frozen_modes_are_even():
    plan = plan_of(planned(1000, 3), mode="fwa")
    counts = [sum(piece.stop - piece.start for chunk in unit for piece in chunk) for unit in plan.units()]
    assert len(counts) == FROZEN_UNITS
    assert sum(counts) == 1000
    assert max(counts) - min(counts) <= 6
    assert all(a.stop == b.start for a, b in itertools.pairwise(p for u in plan.units() for c in u for p in c))
