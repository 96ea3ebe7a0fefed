"""What ``jaxwrap doctor`` and ``jaxwrap patch`` tell about encoders, with a script that says it is HM."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jaxwrap.codecs.reference.patching import load_patch
from jaxwrap.codecs.reference.programs import PROGRAMS
from jaxwrap.train.cli import app
from jaxwrap.train.doctor import examine

BANNER = "HM software: Encoder Version [18.0] (including RExt)"


def finding(name: str) -> str:
    (found,) = [text for topic, item, text in examine() if (topic, item) == ("encoder", name)]
    return found


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which the script ``bin/TAppEncoder`` of an otherwise empty tree is the only reference encoder."""
    for variable, _ in PROGRAMS.values():
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(f"{variable}_CFG", raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("JAXWRAP_HM", str(script(tmp_path, f"{BANNER}\njaxwrap patch v1, modes diag, idse")))
    return tmp_path


def script(folder: Path, banner: str) -> Path:
    path = folder / "bin" / "TAppEncoder"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{banner}\nEND\n")
    path.chmod(0o755)
    return path


def test_a_patched_encoder_is_shown_with_version_patch_modes_hash_and_place(machine):
    (machine / "cfg").mkdir()
    for stem in ("intra", "lowdelay_P", "randomaccess"):
        (machine / "cfg" / f"encoder_{stem}_main10.cfg").touch()
    (machine / "cfg" / "misc").mkdir()
    (machine / "cfg" / "misc" / "encoder_randomaccess_main10_GOP8.cfg").touch()
    digest = hashlib.sha256((machine / "bin" / "TAppEncoder").read_bytes()).hexdigest()[:12]
    wanted = f"HM 18.0, jaxwrap patch v1, modes diag, idse, sha256 {digest}, configurations "
    found = finding("hm")
    assert found.startswith(wanted)
    assert re.fullmatch(rf"[0-9a-f]{{12}}, {machine}/bin/TAppEncoder", found.removeprefix(wanted))


def test_what_is_missing_is_said_with_what_to_do(machine, monkeypatch):
    assert "needs its configuration file encoder_intra_main10.cfg" in finding("hm")
    assert "set JAXWRAP_HM_CFG to the folder" in finding("hm")
    assert finding("jm") == "jm was not found: set JAXWRAP_JM to its lencod.exe, or put it on PATH"
    script(machine, "GNU coreutils")
    found = finding("hm")
    assert "does not say that it is HM; it prints: GNU coreutils" in found
    assert found.endswith("Point JAXWRAP_HM at TAppEncoderStatic or TAppEncoder")
    script(machine, BANNER)
    assert "unpatched, so that it takes no weights: jaxwrap patch hm" in finding("hm")
    monkeypatch.setenv("JAXWRAP_HM", str(machine))
    assert "is no executable file" in finding("hm")


def test_patch_command_names_files_next_step_and_what_it_refuses(tmp_path, monkeypatch):
    runner = CliRunner()
    refused = runner.invoke(app, ["patch", "hm", "--tree", str(tmp_path)])
    assert isinstance(refused.exception, ValueError)
    assert "source/Lib/TLibEncoder/TEncSearch.cpp is missing" in str(refused.exception)
    patch = load_patch("hm")
    calls = []

    def pretend(name: str, tree: Path, *, reverse: bool) -> tuple[str, ...]:
        calls.append((name, tree, reverse))
        return tuple(patch.files)

    monkeypatch.setattr("jaxwrap.codecs.reference.patching.patch_tree", pretend)
    done = runner.invoke(app, ["patch", "hm", "--tree", str(tmp_path)])
    assert done.exit_code == 0
    assert "source/Lib/TLibEncoder/TEncSearch.cpp\n" in done.output
    assert "set JAXWRAP_HM to its binary, run jaxwrap doctor." in done.output
    undone = runner.invoke(app, ["patch", "hm", "--tree", str(tmp_path), "--reverse"])
    assert "HM 18.0 has no patch in it." in undone.output
    assert calls == [("hm", tmp_path, False), ("hm", tmp_path, True)]
