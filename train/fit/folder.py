"""The folder of a training run: whose it is, its log, and what a checkpoint says about how it was made."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxwrap.codecs.files import write_atomically


def digest_of(tree: Any) -> str:
    """Hash of all arrays of a pytree: what a run was made of, whatever the names of its files."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def claim(out: Path, wanted: dict[str, Any]) -> None:
    """Makes ``out`` the folder of this configuration and content, or refuses."""
    file = out / "config.json"
    if file.exists():
        found = json.loads(file.read_text())
        differing = [f"{k}: {found.get(k)!r} there, {v!r} asked" for k, v in wanted.items() if found.get(k) != v]
        if differing:
            raise ValueError(
                f"{out} holds a run of another configuration; give another out= folder, or the same settings:\n  "
                + "\n  ".join(differing)
            )
        return
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is no training folder (no config.json); give an empty or new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(wanted, indent=1).encode())


def made_with() -> dict[str, Any]:
    """Device and versions of this process, for a checkpoint's notes."""
    import flax
    import optax

    return {
        "device": jax.devices()[0].device_kind,
        "versions": {
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
            "numpy": np.__version__,
        },
    }


class Log:
    """``log.csv``: one row per logged interval or validation, of the columns ``fields``; rows past a resumed state are
    dropped."""

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        self._path, self._fields = path, fields

    def resume(self, step: int) -> float:
        """Forgets rows after ``step``; returns the best validation loss up to it."""
        if not self._path.exists():
            return float("inf")
        with self._path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        text = io.StringIO()
        writer = csv.DictWriter(text, self._fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self._path, text.getvalue().encode())
        return min((float(row["validation_loss"]) for row in rows if row["validation_loss"]), default=float("inf"))

    def best(self, member: str) -> float:
        """The best validation loss of one member of a job, by the column ``member``."""
        with self._path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["member"] == member and row["validation_loss"]]
        return min((float(row["validation_loss"]) for row in rows), default=float("inf"))

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends and flushes."""
        new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self._fields, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
