"""Methods as the command line makes them: by name, with map files matched by their mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.codec import Weights
from jaxwrap.codecs.weightmap import write_maps
from jaxwrap.importance.weights import DEFAULT_ALPHA
from jaxwrap.methods import Calibrated, Chain, Dqp, Fold, Fwa, Iwa, Relinearise, Wa
from jaxwrap.train.evaluate.modes import receiver_metric
from jaxwrap.train.runs import new_methods


def planes(n: int, values: tuple[float, float, float] = (2.0, 0.5, 1.0)) -> Yuv420:
    return Yuv420(*(np.full((n, s, s), v, np.float32) for s, v in zip((8, 4, 4), values, strict=True)))


def write(path: Path, mode: Any, maps: Frame, **details: Any) -> Path:
    write_maps(path, maps, mode=mode, receiver="test", sketches=4, details=details)
    return path


def test_every_name_that_needs_no_file_makes_its_method() -> None:
    methods = new_methods(["sse", "dqp", "iwa+dqp", "refine", "refine:encoder", "refine+dqp"], alpha=0.25)
    assert [m.name for m in methods] == ["sse", "dqp", "iwa+dqp", "refine", "refine:encoder", "refine+dqp"]
    _, dqp, iwa, refine, encoder, _ = methods
    assert isinstance(dqp, Chain)
    assert isinstance(iwa, Chain)
    for chain, kind in ((dqp, Wa), (iwa, Iwa)):
        weighing, offsets = chain.stages
        assert type(weighing) is kind
        assert (weighing.metric, weighing.alpha, offsets) == (receiver_metric, 0.25, Dqp())
    assert refine.metric is receiver_metric  # type: ignore[attr-defined]
    assert isinstance(encoder, Relinearise)


def test_decisions_and_rows_that_nothing_uses_are_refused() -> None:
    with pytest.raises(ValueError, match="decisions sse, rdoq were given, and no method makes weights"):
        new_methods(["sse", "refine"], decisions=["sse", "rdoq"])
    with pytest.raises(ValueError, match="4 rows were asked for, and no method is idse"):
        new_methods(["sse", "wa"], rows=4)


def test_map_files_go_to_the_methods_of_their_mode(tmp_path: Path) -> None:
    maps = [
        write(tmp_path / "frozen.dat", "fwa", planes(1)),
        write(tmp_path / "measured.dat", "calibrated", planes(1, (1.0, 0.25, 0.25)), alpha=0.5),
        write(tmp_path / "held.dat", "iwa", planes(3)),
    ]
    fwa, calibrated, iwa, fold = new_methods(["fwa", "calibrated", "iwa+dqp", "fold"], maps=maps, alpha=0.125)
    assert isinstance(fwa, Fwa)
    assert fwa.alpha == 0.125  # raw h
    assert isinstance(calibrated, Calibrated)
    assert isinstance(calibrated.map, Weights)  # normalised when it was written, with an α of its own
    np.testing.assert_array_equal(calibrated.map.planes.u, planes(1, (1.0, 0.25, 0.25)).u)
    assert isinstance(iwa, Chain)
    assert iwa.stages[0].map.y.shape[0] == 3  # type: ignore[union-attr]
    assert isinstance(fold, Fold)
    assert fold.transform.scales == (1.0, 0.5, 0.5)  # type: ignore[attr-defined]  # √w of the calibrated one
    (alone,) = new_methods(["fold"], maps=maps[:1])
    np.testing.assert_allclose(alone.transform.scales, (1.0, 0.5, 0.5**0.5), rtol=1e-6)  # type: ignore[attr-defined]
    assert new_methods(["wa"])[0].alpha == DEFAULT_ALPHA  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("names", "files", "message"),
    [
        (["fwa+dqp"], [], r"method fwa needs a map .*importance --mode fwa --input PICTURES.* --map fwa\.dat here"),
        (["sse", "calibrated"], [], "method calibrated needs a map .*--mode calibrated"),
        (["fold+refine"], ["wa"], "method fold needs a map .*--mode calibrated"),
        (["sse", "dqp"], ["fwa"], r"fwa\.dat is of mode fwa, and no method uses it: add fwa to .* or fwa\+dqp "),
        (["fold"], ["fwa", "calibrated"], r"fwa\.dat is of mode fwa, and no method uses it"),
        (["fwa"], ["fwa", "fwa"], "are both maps of mode fwa"),
        (["best"], ["fwa"], "'best' was asked for"),
        (["calibrated+dqp"], ["calibrated"], "one weight per plane, and a block has one QP .* use fold"),
        (["fold"], ["gray"], "is of 4:0:0 frames; method fold weighs the planes of 4:2:0"),
    ],
)
def test_missing_unused_and_doubled_maps_are_named(tmp_path: Path, names, files, message) -> None:
    paths = [
        write(tmp_path / "gray.dat", "fwa", Yuv400(np.ones((1, 8, 8), np.float32)))
        if name == "gray"
        else write(tmp_path / f"{name}.dat", name, planes(1))
        for name in files
    ]
    with pytest.raises(ValueError, match=message):
        new_methods(names, maps=paths)


def test_a_map_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.(dat|json)"):
        new_methods(["fwa"], maps=[tmp_path / "absent.dat"])


def test_weights_of_a_sequence_keep_what_frames_weigh_against_each_other(tmp_path: Path) -> None:
    unequal = jax.tree.map(lambda p: p * np.array([0.5, 1.5], np.float32)[:, None, None], planes(2, (1.0, 1.0, 1.0)))
    path = write(tmp_path / "wa.dat", "wa", unequal, alpha=0.0)
    (method,) = new_methods(["wa"], maps=[path])
    z = jax.tree.map(lambda p: p * 0 + 512, unequal)
    weights = method.plan(lambda frame: frame, z, None).weights
    assert weights is not None
    np.testing.assert_array_equal(weights.planes.y, unequal.y)
