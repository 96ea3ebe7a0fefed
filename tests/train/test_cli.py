"""The command line, run in this process: bad input gives one message and status 2, and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxwrap.codecs.weightmap import read_maps
from jaxwrap.train import cli
from jaxwrap.train.evaluate.points import COLUMNS
from jaxwrap.train.fit.checkpoints import RunStates, load_wrapper, save_wrapper, shipped_wrappers
from jaxwrap.train.mapping import terminal
from jaxwrap.wrappers.switchable import linear_wrapper

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: good and bad files by name."""
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    picture.save("good.png")
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:2000])
    Path("empty.png").touch()
    Path("notes.txt").write_text("no picture\n" * 20)
    Path("clip_64x48_25fps_8bit_P420.yuv").write_bytes(bytes(1000))
    Path("nothing").mkdir()
    Path("header.csv").write_text(",".join(COLUMNS) + "\n")
    Path("few.csv").write_text("key,qp\n1,22\n")
    Path("foreign").mkdir()
    Path("foreign/thesis.tex").write_text("precious")
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the command with these words; gives status, standard output, standard error."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jaxwrap", *words])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        return int(leave.value.code or 0), *capsys.readouterr()

    return call


BAD = [
    ("nonsense", "No such command 'nonsense'"),
    ("train", "Missing argument 'preset'"),
    ("train huge", "unknown preset 'huge'; valid: smoke, pilot, full"),
    ("train smoke stpes=4", r"unknown key 'stpes' \(did you mean steps\?\)"),
    ("train smoke steps=many", "steps='many': wanted int"),
    ("train smoke steps=0 crop=50 ratio=3/4", r"crop=50: .*\n  .*|ratio='3/4': wanted one of 1, 2/3, 1/2, 1/4"),
    ("train smoke data=absent.png", r"do not exist: absent\.png"),
    ("train smoke data=good.png", "one picture was given as data="),
    ("train smoke data=good.png validation=good.png", "no training picture is at least 96×96"),
    ("evaluate", "Missing option '--input'"),
    ("evaluate -i absent.png", r"do not exist: absent\.png"),
    ("evaluate -i empty.png -i cut.png -i notes.txt -i nothing", "empty.png: the file is empty"),
    ("evaluate -i clip_64x48_25fps_8bit_P420.yuv", "1000 bytes: 0 frames of 4608 bytes .*wanted whole frames"),
    ("evaluate -i good.png --max-frames 0", "max_frames 0 was given; wanted 1 or more"),
    ("evaluate -i good.png --codec x266", "'x266' was given; known: x264, x265"),
    ("evaluate -i good.png --methods best", "'best' was asked for in method 'best'; known: sse, wa, iwa, "),
    ("evaluate -i good.png --config still", "'still' was given; known: intra, lowdelay, randomaccess"),
    ("evaluate -i good.png --encoder-preset medum", "'medum' was given; x264 knows: ultrafast, "),
    ("evaluate -i good.png --qps 22,27,high", "'22,27,high' was given; wanted whole numbers"),
    ("evaluate -i good.png --qps 22.5,27", "'22.5,27' was given; wanted whole numbers"),
    ("evaluate -i good.png --qps 22,27,60", r"QPs \[60\] were given; wanted 0 to 51"),
    ("evaluate -i good.png --qps 22,22", "QPs were given more than once"),
    ("evaluate -i good.png --qps ,", "no QP was given"),
    ("evaluate -i good.png --processes -1", "-1 processes were asked for"),
    ("evaluate -i good.png -r absent", "no wrapper at absent; .*shipped name: .*pair-1of2"),
    ("evaluate -i good.png -r notes.txt", r"notes\.txt is not a wrapper file \(it is no \.npz archive"),
    ("evaluate -i good.png -r pair-1of2 -r pair-1of2", "modes were given more than once: wrapper-1/2"),
    ("evaluate -i good.png -r post-1of2 --methods dqp", "method dqp wants a mode whose two sides are networks"),
    ("importance -i good.png --sketches 0", "0 sketches were asked for; at least 1"),
    ("importance -i good.png --out good.png", "good.png: File exists; a file is where a folder was wanted"),
    ("importance -i good.png --out good.png/maps.dat", "a file is where a folder was wanted"),
    ("importance", "Missing option '--input'"),
    ("importance -i absent.png", r"do not exist: absent\.png"),
    ("importance -i good.png -r absent", "no wrapper at absent; .*shipped name: .*pair-1of2"),
    ("importance -i good.png --mode all", "--mode 'all' was given; wanted wa, iwa, fwa, calibrated"),
    ("importance -i good.png --sketches many", "--sketches 'many' was given; wanted a number or auto"),
    ("importance -i good.png --alpha -1", r"alpha -1\.0 was given; wanted a finite number"),
    ("importance -i good.png --scope clip", "scope 'clip' was given; known: frame, sequence"),
    ("importance -i good.png --memory lots", "a memory of 'lots' was given; wanted a size such as 2GiB or 500MB"),
    ("importance -i good.png --memory 10kB", "a memory budget of 10,000 bytes was given; one frame .* needs"),
    ("importance -i good.png --dtype float16", "--dtype 'float16' was given; wanted float32 or bfloat16"),
    ("importance -i good.png --period 8", "goes with --mode iwa: give both or neither"),
    ("importance -i good.png --mode iwa", "goes with --mode iwa: give both or neither"),
    ("importance -i good.png --mode iwa --period 0", "a period of 0 frames was given; wanted 1 or more"),
    ("importance -i good.png --qp 32", "--qp was given with --mode wa; it is for calibrated"),
    ("importance -i good.png --size 32x32", "--size was given with --mode wa; it is for calibrated"),
    ("importance -i good.png --mode calibrated --sketches 2", "which draws nothing"),
    ("importance -i good.png --mode calibrated --codec x266", "'x266' was given; known: x264, x265"),
    ("importance -i good.png --mode calibrated --qp 60", "60"),
    ("importance -i good.png --mode calibrated --size 32", "--size '32' was given; wanted WIDTHxHEIGHT"),
    ("importance -i good.png --mode calibrated --size 31x33", "a size of 31×33 was given; wanted an even width"),
    ("importance -i good.png --shard 5/4", "shard 5/4 was given; wanted I/N with 1 ≤ I ≤ N"),
    ("importance -i good.png --shard half", "shard 'half' was given; wanted I/N"),
    ("importance -i good.png --shard 1/4 --alpha 1", "--alpha given with --shard: say that with --merge"),
    ("importance -i good.png --mode calibrated --shard 1/4 --size 8x8", "--size given with --shard: say that with"),
    ("importance -i good.png --shard 1/4 --merge 4", "--shard and --merge were given: one at a time"),
    ("importance -i good.png --shards 4", "--shards N was given without --scheduler"),
    ("importance --merge 0", "a number of shards below 1 was given"),
    ("importance --merge 2 --out maps.dat", r"maps\.dat\.parts lacks shards 1, 2 of 2: run them with --shard I/2"),
    ("report absent", "no results at absent; give a results.csv"),
    ("report nothing", r"no results at nothing/results\.csv"),
    ("report empty.png", r"empty\.png is something else; wanted a results\.csv"),
    ("report good.png", "is not a CSV file in UTF-8"),
    ("report few.csv", "few.csv lacks the columns dataset"),
    ("report header.csv", "has a header but no row"),
    ("bench jpeg-rate nothing", r"nothing holds no \.png"),
    ("bench jpeg-rate nothing --json good.png/figures.json", "a file is where a folder was wanted"),
    ("bench proxy --peer nothing", "give a sandwiched_compression checkout"),
    ("bench proxy --peer-python python", "--peer-python was given without --peer"),
    ("bench proxy --rounds 0", "Invalid value for '--rounds'"),
    ("bench postprocessor --height 0", "Invalid value for '--height'"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[words for words, _ in BAD])
def test_bad_input_gives_one_message_and_status_2(run: Run, folder: Path, words: str, message: str) -> None:
    before = sorted(folder.rglob("*"))
    status, _, error = run(*words.split())
    assert status == 2
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert re.search(message, error), error
    assert [path for path in before if not path.exists()] == []
    assert (folder / "foreign/thesis.tex").read_text() == "precious"


def test_shards_are_merged_by_the_command_that_they_print(run: Run, folder: Path) -> None:
    shutil.copy("good.png", "same.png")
    save_wrapper(folder / "linear.wrapper.npz", linear_wrapper("bilinear", Fraction(1, 2)), notes={})
    options = ("--input=good.png", "--input=same.png", "--run=linear.wrapper.npz", "--out=maps.dat", "--sketches=1")
    for number in (2, 1):
        status, out, error = run("importance", *options, f"--shard={number}/2")
        assert (status, error) == (0, "")
        assert "jaxwrap importance --merge 2 --out maps.dat" in out
    assert not Path("maps.dat").exists()
    status, out, _ = run("importance", "--merge=2", "--out=maps.dat")
    assert status == 0
    assert re.search(r"maps\.dat +│ 26×20 +│ 2 +│ 2 +│ —", out), out
    read, info = read_maps("maps.dat", size=(20, 26))
    assert (read.y.shape, info.mode, info.receiver) == ((2, 20, 26), "wa", "post-processor of linear.wrapper.npz")
    assert [path.name for path in folder.glob("*.parts")] == []


def test_a_calibrated_map_of_shards_gets_its_size_when_they_are_merged(run: Run, folder: Path) -> None:
    Image.open("good.png").crop((0, 0, 32, 40)).save("other.png")
    save_wrapper(folder / "linear.wrapper.npz", linear_wrapper("bilinear", Fraction(1, 2)), notes={})
    options = ("--input=good.png", "--input=other.png", "--run=linear.wrapper.npz", "--out=maps.dat")
    assert run("importance", *options, "--mode=calibrated", "--shard=1/1")[0] == 0
    status, _, error = run("importance", "--merge=1", "--out=maps.dat")
    assert status == 2
    assert "say with --size WIDTHxHEIGHT" in error
    assert run("importance", "--merge=1", "--out=maps.dat", "--size=32x16")[0] == 0
    assert read_maps("maps.dat", size=(16, 32))[1].mode == "calibrated"


@pytest.mark.parametrize(("words", "devices"), [([], [3, 4]), (["--scheduler=tcp://host:1"], None)])
def test_a_run_on_a_cluster_is_not_planned_for_the_devices_of_this_machine(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], devices: Any
) -> None:
    save_wrapper(folder / "linear.wrapper.npz", linear_wrapper("bilinear", Fraction(1, 2)), notes={})
    seen: list[Any] = []

    def prepare(*args: Any, devices: Any, **options: Any) -> None:
        seen.append(devices)
        raise ValueError("enough was seen")

    monkeypatch.setattr(terminal, "_accelerators", lambda: [3, 4])
    monkeypatch.setattr(terminal, "prepare", prepare)
    run("importance", "--input=good.png", "--run=linear.wrapper.npz", "--out=maps.dat", *words)
    assert seen == [devices]


def test_parts_of_another_division_are_mentioned(run: Run, folder: Path) -> None:
    save_wrapper(folder / "linear.wrapper.npz", linear_wrapper("bilinear", Fraction(1, 2)), notes={})
    options = ("--input=good.png", "--run=linear.wrapper.npz", "--out=maps.dat", "--sketches=1")
    _, out, _ = run("importance", *options, "--shard=1/3")
    assert "holds parts of" not in out
    status, out, _ = run("importance", *options)
    assert status == 0
    assert "maps.dat.parts holds parts of a run in 3, which are of no use to one in 1" in out


def test_every_unreadable_file_is_named(run: Run) -> None:
    _, _, error = run("evaluate", *(f"--input={name}" for name in ("empty.png", "cut.png", "notes.txt", "nothing")))
    assert [line.partition(":")[0].strip() for line in error.splitlines()[1:]] == [
        "empty.png", "cut.png", "notes.txt", "nothing",
    ]  # fmt: skip


def test_a_command_without_arguments_prints_help_and_no_error(run: Run) -> None:
    status, out, error = run()
    assert status == 2
    assert "importance" in out + error
    assert "error:" not in error


def test_points_that_failed_give_status_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "run_evaluation", lambda *args, **settings: 3)
    assert run("evaluate", "-i", "good.png")[0] == 1
    monkeypatch.setattr(cli, "run_evaluation", lambda *args, **settings: 0)
    assert run("evaluate", "-i", "good.png")[0] == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("PyTorch's output differs by 0.2"), "error: PyTorch's output differs by 0.2\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.csv"), "error: a.csv: .*; .*free some space and run the"),
        (OSError(errno.ENOSPC, "the disk is full: a.csv; free some space"), "error: the disk is full: a.csv; free"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a.csv"), "error: a.csv: Permission denied\n"),
        (MemoryError(), "error: no memory was left; give fewer"),
        (ValueError("wanted [1, 2]"), r"error: wanted \[1, 2\]"),
    ],
)
def test_errors_are_put_into_words(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail() -> Any:
        raise error

    monkeypatch.setattr("jaxwrap.train.doctor.examine", fail)
    status, _, text = run("doctor")
    assert status == 2
    assert re.match(message, text)


def test_an_error_of_ours_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxwrap.train.doctor.examine", lambda: {}["absent"])
    monkeypatch.setattr(sys, "argv", ["jaxwrap", "doctor"])
    with pytest.raises(KeyError):
        cli.main()


def test_ctrl_c_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxwrap.train.doctor.examine", interrupt)
    status, _, text = run("doctor")
    assert (status, text) == (130, "stopped; the same command goes on where it was\n")


def test_doctor_names_a_variable_that_points_nowhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXWRAP_HM", "/nonsense")
    status, out, _ = run("doctor")
    assert status == 0
    assert "JAXWRAP_HM=/nonsense is no executable file" in out


def changed(**entries: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """A change of a wrapper file's description."""

    def change(arrays: dict[str, Any], meta: dict[str, Any]) -> None:
        for name, value in entries.items():
            (meta if name in ("format", "notes") else meta["config"])[name] = value

    return change


def of_another_network(arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    first, second, third, fourth = list(arrays)[:4]
    arrays["extra.bias"] = arrays.pop(first)
    arrays[second] = arrays[second][None]
    arrays[third] = arrays[third] * np.nan
    arrays[fourth] = arrays[fourth].astype(str)


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (of_another_network, ["(5 mismatches)", "missing: ", "unexpected: extra.bias", "misshapen: ", "not finite: ",
                              "not real numbers: "]),
        (changed(ratio="3/4"), ["ratio 3/4 was given; supported: 1, 2/3, 1/2, 1/4"]),
        (changed(ratio=None), ["is not a wrapper file"]),
        (changed(pre="nearest"), ["'nearest' was given; supported: bilinear, lanczos4"]),
        (changed(depth=3), ["was given depth; its fields are ratio, pre, post"]),
        (changed(format=2), ["no description in format 1"]),
        (lambda arrays, meta: meta.clear(), ["no description in format 1"]),
    ],
)  # fmt: skip
def test_a_wrapper_file_that_does_not_fit_says_everything_at_once(
    folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], messages: list[str]
) -> None:
    with np.load(shipped_wrappers()["pair-1of2"]) as archive:
        arrays: dict[str, Any] = dict(archive)
    meta = json.loads(str(arrays.pop("__meta__")))
    change(arrays, meta)
    np.savez("other.wrapper.npz", __meta__=np.array(json.dumps(meta)), **arrays)
    with pytest.raises(ValueError, match=r"^other\.wrapper\.npz (does not fit|is not a wrapper)") as caught:
        load_wrapper("other.wrapper.npz")
    assert [text for text in messages if text not in str(caught.value)] == []


@pytest.mark.parametrize("content", ["cut", "array", "nameless", "empty"])
def test_a_file_that_is_no_wrapper_is_refused(folder: Path, content: str) -> None:
    file = folder / "x.wrapper.npz"
    whole = shipped_wrappers()["pair-1of2"].read_bytes()
    if content == "array":
        np.save(folder / "x.npy", np.zeros(3))
        (folder / "x.npy").rename(file)
    elif content == "nameless":
        np.savez(file, kernel=np.zeros(3))
    else:
        file.write_bytes(whole[: len(whole) // 2] if content == "cut" else b"")
    with pytest.raises(ValueError, match=r"is not a wrapper file .*`jaxwrap train` writes them"):
        load_wrapper(file)


class State(NamedTuple):
    step: jax.Array
    kernel: jax.Array


def test_a_full_disk_leaves_the_older_states(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: Any = RunStates(folder / "run")
    older, newer = (State(jnp.int32(step), jnp.full(5, step, jnp.float32)) for step in (1, 2))
    try:
        states.save(older)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(OSError, match="the disk is full: the state of step 2 was not written") as caught:
            states.save(newer)
        assert caught.value.errno == errno.ENOSPC
        assert states.latest(newer).kernel.tolist() == [1.0] * 5
    finally:
        states.close()
