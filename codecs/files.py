"""Output files: written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

HASH_CHUNK = 1 << 20


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name in its folder and renames it, so that readers see the old file or the new
    one.

    Raises `OSError` with the file's name, and with what to do where the disk is full; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        _explain(error, path, len(content))
        raise


class OpenFile:
    """A context manager that closes its file at the end."""

    _file: BinaryIO

    def close(self) -> None:
        """May be called again."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class GrowingFile(OpenFile):
    """A file of a header and records of one size that grows under ``.NAME.part`` and is renamed when it is whole;
    closed before that, it is removed.

    It is locked while it is open. Raises `OSError` where another process is writing it.
    """

    def __init__(self, path: Path, *, header_bytes: int, record_bytes: int) -> None:
        self.path, self._header_bytes, self._record_bytes = path, header_bytes, record_bytes
        self._part = path.with_name(f".{path.name}.part")
        self._published = False
        self._file = _locked(self._part, path)
        self._file.truncate(0)  # what a process that was killed has left
        self.count = 0

    @property
    def _end(self) -> int:
        return self._header_bytes + self.count * self._record_bytes

    def _append(self, records: bytes) -> None:
        """Writes whole records. Raises `OSError` with what to do where the disk is full."""
        if len(records) % self._record_bytes:
            raise ValueError(f"{self.path}: {len(records)} bytes were given; records have {self._record_bytes}")
        try:
            self._write(self._end, records)
        except OSError as error:
            _explain(error, self.path, len(records))
            raise
        self.count += len(records) // self._record_bytes

    def _publish(self, header: bytes, *, append_digest: bool = False) -> str:
        """Writes the header, renames the file, and returns the SHA-256 (hex) of header and records.

        With ``append_digest`` its 32 bytes are put at the end.
        """
        if len(header) != self._header_bytes:
            raise ValueError(f"{self.path}: a header of {len(header)} bytes was given; wanted {self._header_bytes}")
        try:
            self._write(0, header)
            digest = digest_of(self._file)
            if append_digest:
                self._write(self._end, digest.digest())
            os.fsync(self._file.fileno())
            os.replace(self._part, self.path)
        except OSError as error:
            _explain(error, self.path, self._end)
            raise
        self._published = True
        self.close()
        return digest.hexdigest()

    def close(self) -> None:
        """Removes what was not published."""
        if not self._published and not self._file.closed:
            self._part.unlink(missing_ok=True)  # while it is locked: later it may be another's
        self._file.close()

    def _write(self, offset: int, content: bytes) -> None:
        self._file.seek(offset)
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]


def _locked(part: Path, path: Path) -> BinaryIO:
    """The file that bears the name ``part`` (made where there is none), locked."""
    while True:
        file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(part)):
                return file
        except FileNotFoundError:
            pass
        except OSError as error:
            file.close()
            raise OSError(error.errno, f"{path} is being written by another process: wait for it or stop it") from error
        except BaseException:
            file.close()
            raise
        file.close()  # renamed or removed by who held it between our opening and locking it: no longer ours to write


def digest_of(file: BinaryIO, num_bytes: int | None = None) -> hashlib._Hash:
    """SHA-256 of a file's first ``num_bytes`` (default: all), read in pieces."""
    file.seek(0)
    digest, left = hashlib.sha256(), num_bytes
    while chunk := file.read(HASH_CHUNK if left is None else min(HASH_CHUNK, left)):
        digest.update(chunk)
        left = None if left is None else left - len(chunk)
    return digest


def _explain(error: OSError, path: Path, num_bytes: int) -> None:
    """Raises with what to do where the disk is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(
            error.errno,
            f"the disk is full: {path} ({num_bytes} bytes) was not written, what bore its name before is kept; "
            "free some space and run the same command again",
        ) from error
