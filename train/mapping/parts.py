"""Parts of a map run on disk: what one shard has computed, unit after unit, and how far it came.

In the folder of the parts, for shard i of N:

* ``iofN.plan.json``: the `Plan`, the same for all shards;
* ``iofN.maps``: the records of its units, one after the other;
* ``iofN.journal``: one line of JSON per unit that is safe in ``iofN.maps``, with the length that this has since then.

Both grow at their ends only, the journal after the data. Whatever interrupts a run, the journal's whole lines tell what
is good; the rest of both files is cut off when the shard is opened again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from jaxwrap.codecs.files import write_atomically
from jaxwrap.train.mapping.plan import Plan, Shard

PATIENCE = 30.0
"""Seconds that a shard waits for another process at the same shard to end: one that was killed may take a moment."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A line of the journal: the unit's number, the maps of each of its pieces (in the plan's order), the length of the
    data with it, and the sketches that were used at most."""

    unit: int
    counts: tuple[int, ...]
    num_bytes: int
    sketches: int


class Part:
    """The files of one shard, open for writing; a context manager that other processes wait for.

    Raises `ValueError` where the folder holds parts of another plan, naming what differs, and `RuntimeError` where
    another process is at this shard for more than ``patience`` seconds.
    """

    def __init__(self, folder: Path, plan: Plan, shard: Shard, *, patience: float = PATIENCE) -> None:
        self.folder, self.plan, self.shard, self.patience = folder, plan, shard, patience
        self.share = shard.share(plan.units())
        self.entries: list[Entry] = []

    def __enter__(self) -> Part:
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self._journal = stack.enter_context(_path(self.folder, self.shard, "journal").open("ab+"))
            self._lock()
            self._claim()
            self._data = stack.enter_context(_path(self.folder, self.shard, "maps").open("ab+"))
            self.entries = list(_entries(self._journal, self.share))
            self._cut(self.entries[-1].num_bytes if self.entries else 0)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def todo(self) -> range:
        """Numbers of the units that are left."""
        return self.share[len(self.entries) :]

    def append(self, record: bytes, *, counts: tuple[int, ...], sketches: int) -> None:
        """Adds the next unit's record; when this returns, it is on disk."""
        start = self.entries[-1].num_bytes if self.entries else 0
        entry = Entry(self.todo[0], counts, start + len(record), sketches)
        try:
            _write(self._data, record)
            _write(self._journal, json.dumps(dataclasses.asdict(entry)).encode() + b"\n")
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                error.errno,
                f"the disk is full: {self.folder} keeps the maps that were made before; free some space and run the "
                "same command again",
            ) from error
        self.entries.append(entry)

    def _claim(self) -> None:
        path = _path(self.folder, self.shard, "plan.json")
        mine = json.dumps(self.plan.to_dict(), indent=1).encode()
        others = sorted(self.folder.glob("*.plan.json"))
        for other in [path] if path in others else others[:1]:
            theirs = _read_plan(other)
            if theirs != self.plan:
                raise ValueError(
                    f"{self.folder} holds parts of another run, different in {self.plan.difference(theirs)}. Remove "
                    "the folder, or give another output"
                )
        if path not in others:
            write_atomically(path, mine)

    def _lock(self) -> None:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"another process is at shard {self.shard.number} of {self.shard.of} in {self.folder}: wait "
                        "for it, or end it and run the same command again"
                    ) from None
                time.sleep(0.1)

    def _cut(self, num_bytes: int) -> None:
        """Cuts off what the journal's whole lines do not vouch for."""
        while self.entries and self._data.seek(0, os.SEEK_END) < self.entries[-1].num_bytes:
            self.entries.pop()  # lost with the machine, although the journal was not
        self._data.truncate(self.entries[-1].num_bytes if self.entries else 0)
        lines = b"".join(json.dumps(dataclasses.asdict(entry)).encode() + b"\n" for entry in self.entries)
        self._journal.truncate(len(lines))


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One unit as it was written: ``plan.units()[unit]``."""

    entry: Entry
    data: bytes


def read_plan(folder: Path, shards: int) -> Plan:
    """The plan of a folder whose ``shards`` shards are all there and finished.

    Raises `ValueError` naming the shards that are missing or not finished, or that belong to another plan.
    """
    plans = {n: _path(folder, Shard(n, shards), "plan.json") for n in range(1, shards + 1)}
    there = {n: _read_plan(path) for n, path in plans.items() if path.is_file()}
    if missing := sorted(set(plans) - set(there)):
        raise ValueError(
            f"{folder} lacks shard{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))} of {shards}: run "
            f"them with --shard I/{shards} first"
        )
    plan = there[1]
    for n, other in there.items():
        if other != plan:
            raise ValueError(f"shard {n} of {shards} in {folder} is of another run: {other.difference(plan)}")
    units = plan.units()
    shares = {n: Shard(n, shards).share(units) for n in there}
    if unfinished := [n for n, share in shares.items() if len(journal(folder, Shard(n, shards), share)) < len(share)]:
        raise ValueError(
            f"shard{'s' if len(unfinished) > 1 else ''} {', '.join(map(str, unfinished))} of {shards} in {folder} did "
            "not finish: run the same command again, it goes on where it was"
        )
    return plan


def divisions(folder: Path) -> list[int]:
    """The numbers of shards N of which the folder holds parts, those furthest done (by the size of the data) first."""
    sizes: dict[int, int] = {}
    for path in folder.glob("*of*.plan.json"):
        shard = Shard.parse(path.name.partition(".")[0].replace("of", "/"))
        data = _path(folder, shard, "maps")
        sizes[shard.of] = sizes.get(shard.of, 0) + (data.stat().st_size if data.exists() else 0)
    return sorted(sizes, key=lambda of: (-sizes[of], of))


def journal(folder: Path, shard: Shard, share: range) -> list[Entry]:
    """What a shard has finished of its ``share`` (`Shard.share`), as far as its journal is whole; for watching it from
    outside, too."""
    try:
        with _path(folder, shard, "journal").open("rb") as file:
            return list(_entries(file, share))
    except FileNotFoundError:
        return []


def maps_done(folder: Path, shares: Mapping[Shard, range]) -> int:
    """Maps of these shards that are safe on disk."""
    journals = (journal(folder, shard, share) for shard, share in shares.items())
    return sum(sum(entry.counts) for entries in journals for entry in entries)


def read_records(folder: Path, plan: Plan, shards: int) -> Iterator[Record]:
    """The records of all shards in the order of the sequence, one at a time."""
    units = plan.units()
    for n in range(1, shards + 1):
        shard, start = Shard(n, shards), 0
        with _path(folder, shard, "maps").open("rb") as file:
            for entry in journal(folder, shard, shard.share(units)):
                data = file.read(entry.num_bytes - start)
                if len(data) != entry.num_bytes - start:
                    raise ValueError(
                        f"{file.name} ends before unit {entry.unit}, which its journal has: run shard {n}/{shards} "
                        "again"
                    )
                start = entry.num_bytes
                yield Record(entry, data)


def remove(folder: Path) -> None:
    """Removes the parts after they were merged."""
    shutil.rmtree(folder)


def _path(folder: Path, shard: Shard, suffix: str) -> Path:
    return folder / f"{shard}.{suffix}"


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.from_dict(json.loads(path.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _entries(file: BinaryIO, share: range) -> Iterator[Entry]:
    """Whole lines that follow one another, from the first on."""
    file.seek(0)
    for expected in share:
        line = file.readline()
        try:
            fields: dict[str, Any] = json.loads(line)
            entry = Entry(**{**fields, "counts": tuple(fields["counts"])})
        except (ValueError, TypeError, KeyError):
            return
        if not line.endswith(b"\n") or entry.unit != expected:
            return
        yield entry


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
