"""Points that could not be measured: set aside with the encoder's log, and left alone until they are asked for again.

``failed.json`` in a sweep's folder lists them; ``failed/KEY.log`` holds what is known of each, for an encoder that is a
program its command and its whole output. A sweep that is run again does not try them again, for what fails may take an
hour to do so, unless it is told to. A key holds the encoder's version and, for programs, the hash of the binary: after
a new build all are tried.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import traceback
from collections.abc import Iterable
from pathlib import Path

from jaxwrap.codecs.files import write_atomically
from jaxwrap.train.evaluate.rows import Row


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A point that could not be measured, and why. ``log``: what the encoder said, a path within the folder."""

    key: str
    sequence: str
    codec: str
    mode: str
    method: str
    lambda_scale: float
    qp: float
    error: str
    log: str


class Quarantine:
    """The failures of a sweep's folder, by the keys of their rows."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.failures: dict[str, Failure] = {}
        self._file, self._folder = out / "failed.json", out / "failed"

    def read(self) -> None:
        """Takes over what failed before; a list that is damaged is as none, so that all of it is tried again."""
        try:
            listed = [Failure(**entry) for entry in json.loads(self._file.read_text())]
        except (OSError, ValueError, TypeError):
            return
        self.failures = {failure.key: failure for failure in listed}

    def add(self, rows: Iterable[Row], error: Exception) -> None:
        """Sets rows aside, and writes the log of each at once."""
        text = "".join(traceback.format_exception(error))
        if log := getattr(error, "log", ""):
            text = f"{log}\n{'-' * 80}\n{text}"
        self._folder.mkdir(exist_ok=True)
        for row in rows:
            path = self._folder / f"{row.key}.log"
            write_atomically(path, text.encode())
            self.failures[row.key] = Failure(
                row.key,
                row.source.name,
                row.codec.name,
                row.mode.name,
                row.method.name,
                row.lambda_scale,
                row.qp,
                f"{type(error).__name__}: {error}",
                str(path.relative_to(self._out)),
            )
        self._write()

    def keep_only(self, keys: Iterable[str]) -> None:
        """Forgets the failures, and the logs, of all other rows; lists the rest in the order of ``keys``."""
        self.failures = {key: self.failures[key] for key in keys if key in self.failures}
        if not self.failures:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._file.unlink(missing_ok=True)
            return
        for path in self._folder.glob("*.log"):
            if path.stem not in self.failures:
                path.unlink()
        self._write()

    def _write(self) -> None:
        listed = [dataclasses.asdict(failure) for failure in self.failures.values()]
        write_atomically(self._file, json.dumps(listed, indent=2).encode())
