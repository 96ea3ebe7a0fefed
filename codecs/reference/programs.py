"""Where the reference encoders and their configuration files are: named by the user, never part of this project."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxwrap.codecs.reference.launch import kill_group

PROGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "hm": ("JAXWRAP_HM", ("TAppEncoderStatic", "TAppEncoder")),
    "jm": ("JAXWRAP_JM", ("lencod", "lencod.exe")),
    "vtm": ("JAXWRAP_VTM", ("EncoderAppStatic", "EncoderApp")),
    "vvenc": ("JAXWRAP_VVENC", ("vvencFFapp",)),
}
"""Name → (environment variable, program names looked for on PATH)."""

_CONFIG_FOLDERS = ("cfg", "bin", ".")
_BANNER_SECONDS = 20.0
_PATCH = re.compile(r"^jaxwrap patch v(\d+), modes ([a-z, ]+?)\s*$", re.MULTILINE)


def find_program(name: str) -> Path | None:
    """The encoder's binary, or None. Raises `FileNotFoundError` where its variable is set but names no executable
    file."""
    variable, names = PROGRAMS[name]
    if value := os.environ.get(variable):
        return _executable(Path(value), f"{variable}={value}", names)
    found = next(filter(None, map(shutil.which, names)), None)
    return Path(found) if found else None


def require_program(name: str, binary: Path | None = None) -> Path:
    """The binary given, else the one that is found. Raises `RuntimeError` where there is none."""
    variable, names = PROGRAMS[name]
    try:
        found = find_program(name) if binary is None else _executable(Path(binary), str(binary), names)
    except FileNotFoundError as error:
        raise RuntimeError(str(error)) from error
    if found is None:
        raise RuntimeError(f"{name} was not found: set {variable} to its {names[-1]}, or put it on PATH")
    return found.absolute()


def find_config(name: str, binary: Path, file: str, configs: Path | None = None) -> Path:
    """One of the encoder's own configuration files, by its path in their folder.

    ``configs`` is that folder; default: ``$JAXWRAP_HM_CFG`` (``JM``, …), else ``cfg`` or ``bin`` in one of the folders
    above the binary, where a source tree has them. Raises `ValueError` naming what was looked for and where.
    """
    variable = f"{PROGRAMS[name][0]}_CFG"
    if named := configs or os.environ.get(variable):
        if (path := Path(named) / file).is_file():
            return path.absolute()
        raise ValueError(f"{name} needs its configuration file {file}, which is not in {named}")
    for above in binary.resolve().parents:
        for folder in _CONFIG_FOLDERS:
            if (path := above / folder / file).is_file():
                return path
    raise ValueError(
        f"{name} needs its configuration file {file}, and no folder above {binary} has it in cfg/ or bin/: set "
        f"{variable} to the folder of the encoder's configuration files"
    )


def hash_configs(name: str, binary: Path, files: Sequence[str], configs: Path | None = None) -> str:
    """SHA-256 (hex) of an encoder's configuration files, names and content; those that are missing do not count. Empty
    where none is there. ``configs``: as in `find_config`."""
    found: list[tuple[str, Path]] = []
    for file in files:
        with contextlib.suppress(ValueError):
            found.append((file, find_config(name, binary, file, configs)))
    stamps = [(path.stat().st_mtime_ns, path.stat().st_size) for _, path in found]
    return _hash_files(tuple(found), tuple(stamps)) if found else ""


@functools.lru_cache(maxsize=32)
def _hash_files(files: tuple[tuple[str, Path], ...], stamps: tuple[tuple[int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


class Identity(NamedTuple):
    """What a binary says of itself, and the SHA-256 of its file (hex). ``modes``: those of its jaxwrap patch, None
    where it is unpatched."""

    version: str
    patch: int | None
    modes: tuple[str, ...] | None
    sha256: str

    def __str__(self) -> str:
        patch = "" if self.modes is None else f", jaxwrap patch v{self.patch}, modes {', '.join(self.modes)}"
        return f"{self.version}{patch}, sha256 {self.sha256[:12]}"


def identify(binary: Path, arguments: tuple[str, ...], pattern: str, label: str) -> Identity:
    """Version and patch level from the banner that the binary prints with ``arguments``; kept per file and process.

    ``pattern`` finds the version in the banner, after ``label`` in the answer. Raises `RuntimeError` where the program
    does not start or prints another banner.
    """
    status = binary.stat()
    return _identify(binary, arguments, pattern, label, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=32)
def _identify(binary: Path, arguments: tuple[str, ...], pattern: str, label: str, mtime: int, size: int) -> Identity:
    command = [str(binary), *arguments]
    try:
        banner = _printed(command)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{' '.join(command)} was asked for its version: {error}") from error
    version = re.search(pattern, banner)
    if version is None:
        lines = " / ".join(banner.split("\n")[:3])[:200]
        raise RuntimeError(f"{' '.join(command)} does not say that it is {label}; it prints: {lines}")
    patch = _PATCH.search(banner)
    with binary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Identity(
        f"{label} {version[1]}",
        int(patch[1]) if patch else None,
        tuple(mode.strip() for mode in patch[2].split(",")) if patch else None,
        digest,
    )


def _printed(command: list[str]) -> str:
    """All that a program prints; one that does not end in time is stopped, with its children. An encoder that is given
    nothing to do may well end with an error, so that its status says nothing."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, errors = process.communicate(timeout=_BANNER_SECONDS)
        except BaseException:
            kill_group(process.pid)
            raise
    return (out + errors).decode("utf-8", "replace")


def _executable(path: Path, given: str, names: tuple[str, ...]) -> Path:
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise FileNotFoundError(f"{given} is no executable file; point it at {' or '.join(names)}")
    return path
