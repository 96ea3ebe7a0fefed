"""A cache of small JSON records under the hash of what made them.

A record lies at ``FOLDER/ab/abcdef….json`` with the hash of its own content: one that was damaged is noticed, reported
and made again. Many processes and runs may share a folder; a record is complete or absent. Decoded pictures are not
kept, so a cache stays small.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from jaxwrap.codecs.files import write_atomically


class Cache:
    """Records by key (hexadecimal digits, at least 8), in ``folder``, which is made on the first writing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> dict[str, Any] | None:
        """The record, or None where there is none or it is damaged (with a warning)."""
        path = self._path(key)
        try:
            wrapped = json.loads(path.read_bytes())
            record = wrapped["record"]
            if wrapped["sha256"] != _digest(record) or not isinstance(record, dict):
                raise ValueError("its content does not match its hash")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            warnings.warn(f"cache entry {path} is damaged ({error}); it is made again", RuntimeWarning, stacklevel=2)
            return None
        return record

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Stores a record of JSON values. Raises `OSError` where it cannot be written; what was stored before stays."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"sha256": _digest(record), "record": record}
        write_atomically(path, json.dumps(content, allow_nan=False).encode())

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def _digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
