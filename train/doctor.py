"""What this machine has: devices, versions, encoders. Rows for the terminal, nothing is changed."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import jax

from jaxwrap.codecs.reference.programs import PROGRAMS, find_program

PACKAGES = ("jaxwrap", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "av", "pillow", "bjontegaard")


def version_of(package: str) -> str:
    """Installed version, or ``not installed``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def examine() -> list[tuple[str, str, str]]:
    """(topic, item, finding) rows in reading order."""
    rows = [("machine", "python", platform.python_version()), ("machine", "CPU cores", str(os.cpu_count()))]
    rows += [("device", str(device.id), f"{device.platform}: {device.device_kind}") for device in jax.devices()]
    rows += [("package", name, version_of(name)) for name in PACKAGES]
    rows += [("encoder", name, finding) for name, finding in _library_encoders()]
    for name, (variable, programs) in PROGRAMS.items():
        try:
            path = find_program(name)
            finding = str(path) if path else f"not found: set {variable} to its {programs[0]}"
        except FileNotFoundError as error:
            finding = str(error)
        rows.append(("encoder", name, finding))
    return rows


def _library_encoders() -> list[tuple[str, str]]:
    try:
        from jaxwrap.codecs.x26x import find_encoders
    except ImportError as error:
        return [("x264, x265", f"PyAV does not load ({error})")]
    return list(find_encoders())
