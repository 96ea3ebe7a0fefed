"""The manifest of a sweep's folder: what was asked, with which versions, on which machine, by which commands."""

from __future__ import annotations

import functools
import json
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxwrap.codecs.files import write_atomically
from jaxwrap.train.evaluate.points import canonical_json

MEASURING_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "av")
"""Packages whose code a point's figures come from: their versions are part of its key."""


def claim(out: Path, configuration: dict[str, Any]) -> None:
    """Writes the manifest of a new folder; refuses a folder of another configuration."""
    manifest = out / "manifest.json"
    if manifest.exists():
        try:
            found = json.loads(manifest.read_text())["configuration"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{manifest} is no manifest of a sweep ({error}); choose another output folder, or move that file away"
            ) from error
        differing = sorted(_differences("", found, json.loads(canonical_json(configuration))))
        if differing:
            shown = "\n  ".join(differing[:12]) + ("\n  …" if len(differing) > 12 else "")
            raise ValueError(
                f"{out} holds a sweep of another configuration; choose another folder (points that both have come from "
                f"the cache) or the same settings. Differing:\n  {shown}"
            )
        return
    if taken := [name for name in ("results.csv", "report.html", "pictures.npz") if (out / name).exists()]:
        raise ValueError(
            f"{out} holds {', '.join(taken)} without the manifest.json of a sweep, and would lose them; "
            "choose another output folder, or move them away"
        )
    write_manifest(out, configuration, None, {})


def _differences(name: str, found: Any, given: Any) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(given, dict):
        for key in sorted({*found, *given}):
            inner = f"{name}.{key}" if name else key
            yield from _differences(inner, found.get(key, "absent"), given.get(key, "absent"))
    elif found != given:
        yield f"{name}: {_short(found)} there, {_short(given)} now"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 80 else text[:77] + "…"


def write_manifest(
    out: Path, configuration: dict[str, Any], run: dict[str, Any] | None, commands: dict[str, str]
) -> None:
    """``manifest.json``: ``run`` is what the last run did (None: it has not ended), ``commands`` one per codec."""
    manifest = {
        "configuration": configuration,
        "versions": versions(),
        "machine": {
            "system": platform.platform(),
            "cpu_count": os.cpu_count(),
            "devices": [str(d) for d in jax.devices()],
        },
        "commands": commands,
        "run": run,
    }
    write_atomically(out / "manifest.json", json.dumps(manifest, indent=2).encode())


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of packages, and the kind of device."""
    found = {"python": platform.python_version()}
    for package in ("jaxwrap", *MEASURING_PACKAGES, "bjontegaard"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    device = jax.devices()[0]
    return {**found, "device": f"{device.platform}: {device.device_kind}"}
