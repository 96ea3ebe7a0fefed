"""Putting jaxwrap's insertions into the source tree of HM or JM, and taking them out again.

A patch inserts lines and changes none, so that it holds no line of the encoder: a unified diff without context whose
hunks read ``@@ -LINE,0 +NEW,COUNT @@`` (insert COUNT lines after line LINE of the original), headed by::

    # hm 18.0
    # sha256 FILE HEX      one per file that is touched: its original, with line ends as LF

Nothing is written unless every file is the original that the patch was made for, or that original with the insertions;
a run that was interrupted is thus completed by the next. Lines are inserted with the line ends of the file. Beside the
insertions, headers of jaxwrap's own are copied into one folder of the tree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from jaxwrap.codecs.files import write_atomically

_HUNK = re.compile(r"@@ -(\d+),0 \+(\d+)(?:,(\d+))? @@")


class _Tree(NamedTuple):
    """An encoder's source tree: version, folder for own headers, and what is to be done when it is patched."""

    title: str
    headers: str
    build: str
    variable: str


_TREES: dict[str, _Tree] = {
    "hm": _Tree("HM 18.0", "source/Lib/TLibCommon", "build TAppEncoder as HM's own README.md says", "JAXWRAP_HM"),
    "jm": _Tree("JM 19.0", "lencod/inc", "build lencod (gcc 10 and later: make CC='gcc -fcommon')", "JAXWRAP_JM"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class FilePatch:
    """Insertions into one file: ``after[n]`` are the lines that go after line n of the original (0: before all),
    ``sha256`` is that of the original with LF line ends."""

    sha256: str
    after: Mapping[int, tuple[bytes, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class Patch:
    """All insertions by file, and the headers to copy: name → content."""

    title: str
    files: Mapping[str, FilePatch]
    headers: Mapping[str, bytes]


def load_patch(name: str) -> Patch:
    """The patch of this package for an encoder. Raises `ValueError` for an unknown name."""
    _tree(name)
    package = resources.files("jaxwrap.codecs")
    own, common = package / name, package / "reference" / "jaxwrap_weights.h"
    headers = {common.name: common.read_bytes()}
    headers |= {file.name: file.read_bytes() for file in own.iterdir() if file.name.endswith(".h")}
    return parse_patch((own / f"{name}.patch").read_bytes(), headers)


def parse_patch(text: bytes, headers: Mapping[str, bytes] | None = None) -> Patch:
    """Reads a patch. Raises `ValueError` naming the line for anything but insertions without context, for counts that
    are wrong and for a file without a hash."""
    lines = text.split(b"\n")
    title = lines[0].decode("ascii", "replace").removeprefix("# ")
    hashes: dict[str, str] = {}
    found: dict[str, dict[int, tuple[bytes, ...]]] = {}
    file, number = "", 0
    while number < len(lines):
        line, at = lines[number], f"line {number + 1} of the patch for {title}"
        number += 1
        words = line.decode("ascii", "replace")
        if match := _HUNK.fullmatch(words):
            count = int(match[3] or 1)
            inserted = lines[number : number + count]
            position = int(match[1])
            if not file or len(inserted) != count or not all(entry.startswith(b"+") for entry in inserted):
                raise ValueError(f"{at}: {count} inserted lines were announced; wanted that many, each with +")
            if position in found[file] or any(position < known for known in found[file]):
                raise ValueError(f"{at}: insertion after line {position}, which is not below the one before it")
            if int(match[2]) != position + 1 + sum(map(len, found[file].values())):
                raise ValueError(f"{at}: insertion at line {match[2]} does not follow from what was inserted above it")
            found[file][position] = tuple(entry[1:] for entry in inserted)
            number += count
        elif words.startswith("# sha256 "):
            _, _, path, digest = words.split(" ")
            hashes[path] = digest
        elif words.startswith("+++ b/"):
            file = words.removeprefix("+++ b/")
            found[file] = {}
        elif not (words.startswith(("--- a/", "# ")) or words == ""):
            raise ValueError(f"{at} is {words[:60]!r}; a patch only inserts, without context")
    if set(hashes) != set(found):
        raise ValueError(f"patch for {title}: hashes are given for {sorted(hashes)}, insertions for {sorted(found)}")
    outside = [path for path in found if Path(path).is_absolute() or ".." in Path(path).parts]
    if outside:
        raise ValueError(f"patch for {title}: {outside[0]} is outside the tree")
    return Patch(title, {path: FilePatch(hashes[path], after) for path, after in found.items()}, headers or {})


def patch_tree(name: str, tree: str | Path, *, reverse: bool = False) -> tuple[str, ...]:
    """Patches an encoder's source tree, or with ``reverse`` restores it byte for byte.

    Returns the files that were changed, created or removed, by their paths in the tree; none where nothing was left to
    do. Raises `ValueError` for an unknown encoder, and naming every file that is missing or neither the original nor
    the patched one; nothing is changed then. Where a file cannot be written, what was changed is put back before the
    `OSError` is raised.
    """
    return apply(load_patch(name), Path(tree), _tree(name).headers, reverse=reverse)


def next_step(name: str, changed: tuple[str, ...], *, reverse: bool = False) -> str:
    """What was done and what the user does next, in words; ``changed`` is what `patch_tree` returned."""
    tree = _tree(name)
    done = "has no patch in it" if reverse else "is patched"
    files = f"{len(changed)} file{'s' * (len(changed) != 1)} changed"
    first = f"{files}: {tree.title} {done}." if changed else f"Nothing to do: {tree.title} {done}."
    return first if reverse else f"{first} Next: {tree.build}, set {tree.variable} to its binary, run jaxwrap doctor."


def apply(patch: Patch, tree: Path, header_folder: str, *, reverse: bool = False) -> tuple[str, ...]:
    """`patch_tree` for a patch at hand. ``header_folder`` is where its headers belong."""
    if not tree.is_dir():
        raise ValueError(f"--tree {tree} is no folder; wanted the source tree of {patch.title}")
    wanted: dict[str, bytes | None] = {}
    troubles: list[str] = []
    for path, file in patch.files.items():
        try:
            content = (tree / path).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            troubles.append(f"{path} is missing")
            continue
        plain = content if _is_original(content, file) else remove(content, file)
        if plain is None:
            troubles.append(f"{path} is another version")
            continue
        wanted[path] = plain if reverse else insert(plain, file)
    for header, content in patch.headers.items():
        path = f"{header_folder}/{header}"
        if (tree / path).exists() and (tree / path).read_bytes() != content:
            troubles.append(f"{path} is another version of jaxwrap's header")
        wanted[path] = None if reverse else content
    if troubles:
        raise ValueError(
            f"{tree} is not the source tree of {patch.title} that this patch was made for; nothing was changed:\n  "
            + "\n  ".join(troubles)
            + "\nTake an unchanged tree of that version, or reverse the other patch with the version that made it"
        )
    before = {path: _content(tree / path) for path in wanted}
    changed = [path for path, content in wanted.items() if content != before[path]]
    # Headers come first and go last, so that a tree is never left with a file that includes a missing header.
    changed.sort(key=lambda path: (before[path] is not None) != reverse)
    done: list[str] = []
    try:
        for path in changed:
            done.append(path)
            _write(tree / path, wanted[path])
    except BaseException as error:
        for path in done:
            if _content(tree / path) != before[path]:
                _write(tree / path, before[path])
        if isinstance(error, OSError):
            message = f"{tree / done[-1]} cannot be written: {error.strerror}; the tree is as it was"
            raise OSError(error.errno, message) from error
        raise
    return tuple(sorted(changed))


def insert(original: bytes, file: FilePatch) -> bytes:
    """A file with the insertions, in its own line ends. Raises `ValueError` for a place that it does not have."""
    lines = _lines(original)
    if max(file.after) > len(lines):
        raise ValueError(f"an insertion after line {max(file.after)} was wanted; the file has {len(lines)} lines")
    end = b"\r\n" if b"\r\n" in original else b"\n"
    parts: list[bytes] = []
    for number, line in enumerate([b"", *lines]):
        parts.append(line)
        if number in file.after:
            if line and not line.endswith(b"\n"):
                raise ValueError(f"line {number} has no end: nothing can be inserted after it")
            parts += [new + end for new in file.after[number]]
    return b"".join(parts)


def remove(patched: bytes, file: FilePatch) -> bytes | None:
    """The original of a file with these insertions; None where it is no such file."""
    lines = _lines(patched)
    kept, position, original_line = [], 0, 0
    for after in sorted(file.after):
        step = after - original_line
        kept += lines[position : position + step]
        position, original_line = position + step, after
        new = file.after[after]
        if tuple(line.rstrip(b"\r\n") for line in lines[position : position + len(new)]) != new:
            return None
        position += len(new)
    original = b"".join([*kept, *lines[position:]])
    return original if _is_original(original, file) else None


def _tree(name: str) -> _Tree:
    if name not in _TREES:
        raise ValueError(f"encoder {name!r} was given; patches are there for: {', '.join(_TREES)}")
    return _TREES[name]


def _lines(content: bytes) -> list[bytes]:
    """Lines with their ends; only LF ends a line, as in the patch."""
    lines = content.split(b"\n")
    return [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def _is_original(content: bytes, file: FilePatch) -> bool:
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest() == file.sha256


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
        return
    path = path.resolve()  # through a link, not over it
    mode = path.stat().st_mode if path.exists() else None
    write_atomically(path, content)
    if mode is not None:
        os.chmod(path, mode)
