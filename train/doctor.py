"""What this machine has: devices, versions, encoders. Rows for the terminal, nothing is changed."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import jax

from jaxwrap.codec import CONFIGS, EncodeRequest
from jaxwrap.codecs.reference.encoder import ReferenceEncoder
from jaxwrap.codecs.reference.hm import Hm
from jaxwrap.codecs.reference.jm import Jm
from jaxwrap.codecs.reference.patched import PatchedEncoder
from jaxwrap.codecs.reference.vtm import Vtm
from jaxwrap.codecs.reference.vvenc import Vvenc
from jaxwrap.train.networks import FOLDER_VARIABLE, find_weights

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
    rows += [("encoder", encoder.name, _finding(encoder)) for encoder in (Hm(), Jm(), Vtm(), Vvenc())]
    rows += [
        ("network", name, str(path or f"no weights found; {FOLDER_VARIABLE} names a folder to search"))
        for name, path in find_weights().items()
    ]
    rows.append(("tracking", "trackers", _tracker()))
    return rows


def _finding(encoder: ReferenceEncoder) -> str:
    try:
        found = f"{encoder.version}, {encoder.program}"
        if isinstance(encoder, PatchedEncoder) and encoder.identity.modes is None:
            found += f"; unpatched, so that it takes no weights: jaxwrap patch {encoder.name}"
    except RuntimeError as error:
        return str(error)
    try:
        for config in CONFIGS:
            encoder.check((64, 64), EncodeRequest(qp=32, config=config))
    except ValueError as error:
        return f"{found}; {error}"
    return found


def _tracker() -> str:
    try:
        import trackers  # noqa: F401
    except ImportError as error:  # the package, or libGL, which its OpenCV wants
        return f"does not load ({error}); pip install 'jaxwrap[tracking]'"
    return version_of("trackers")


def _library_encoders() -> list[tuple[str, str]]:
    try:
        from jaxwrap.codecs.x26x import find_encoders
    except ImportError as error:
        return [("x264, x265", f"PyAV does not load ({error})")]
    return list(find_encoders())
