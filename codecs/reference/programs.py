"""Where the reference encoders are: by environment variable, else on PATH. They are never part of this project."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PROGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "hm": ("JAXWRAP_HM", ("TAppEncoderStatic", "TAppEncoder")),
    "jm": ("JAXWRAP_JM", ("lencod", "lencod.exe")),
    "vtm": ("JAXWRAP_VTM", ("EncoderAppStatic", "EncoderApp")),
    "vvenc": ("JAXWRAP_VVENC", ("vvencFFapp",)),
}
"""Name → (environment variable, program names looked for on PATH)."""


def find_program(name: str) -> Path | None:
    """The encoder's binary, or None. Raises `FileNotFoundError` where its variable is set but names no executable
    file."""
    variable, names = PROGRAMS[name]
    if value := os.environ.get(variable):
        path = Path(value)
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise FileNotFoundError(f"{variable}={value} is no executable file; point it at {' or '.join(names)}")
        return path
    found = next(filter(None, map(shutil.which, names)), None)
    return Path(found) if found else None
