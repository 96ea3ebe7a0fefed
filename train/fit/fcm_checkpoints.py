"""Feature wrappers on disk: one ``.npz`` with configuration, parameters, the constants of methods, and notes."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxwrap.codecs.files import write_atomically
from jaxwrap.parameters import assign_parameters, named_parameters
from jaxwrap.train.fit.checkpoints import SUFFIX, wrapper_file
from jaxwrap.wrappers.fcm import FcmConfig, FcmTuning, FcmWrapper

KIND = "fcm"
"""What ``__meta__`` calls these files; those of switchable wrappers have no kind."""

FORMAT = 1
"""Number of the layout of these files; it grows when older readers would misread a newer file."""

_TUNING = "tuning."


def save_fcm(path: Path, wrapper: FcmWrapper, tuning: FcmTuning | None, *, notes: dict[str, Any]) -> None:
    """Writes a wrapper, its tuning and ``notes`` (how it was trained) to one file, by way of a temporary name."""
    meta = {"kind": KIND, "format": FORMAT, "config": wrapper.config.to_dict(), "notes": notes}
    arrays: dict[str, Any] = {"__meta__": np.array(json.dumps(meta, sort_keys=True)), **named_parameters(wrapper)}
    if tuning is not None:
        arrays |= {f"{_TUNING}{field.name}": getattr(tuning, field.name) for field in dataclasses.fields(tuning)}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def load_fcm(path: str | Path) -> tuple[FcmWrapper, FcmTuning | None, dict[str, Any]]:
    """A feature wrapper, the constants of its methods (None before training ended) and its notes, from a file, a
    training folder or the name of a shipped checkpoint (``fcm-yolox-nano``).

    Raises `FileNotFoundError` naming what ships, or `ValueError` where the file is no feature wrapper or does not fit
    its configuration.
    """
    file = wrapper_file(path)
    try:
        with np.load(file) as archive:
            arrays = dict(archive)
        meta = json.loads(str(arrays.pop("__meta__")))
        if meta.get("kind") != KIND:
            raise ValueError("it is a wrapper of pictures, not of features")
        if meta.get("format") != FORMAT:
            raise ValueError(f"its format is {meta.get('format')}, wanted {FORMAT}")
        config, notes = FcmConfig.from_dict(meta["config"]), dict(meta["notes"])
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file} is not a feature wrapper ({error}); `jaxwrap train fcm-…` writes them as *{SUFFIX}"
        ) from error
    parts = {name.removeprefix(_TUNING): arrays.pop(name) for name in list(arrays) if name.startswith(_TUNING)}
    wrapper = nnx.eval_shape(lambda: FcmWrapper(config, rngs=nnx.Rngs(0)))
    assign_parameters(wrapper, arrays, source=str(file))
    missing = {field.name for field in dataclasses.fields(FcmTuning)} - set(parts)
    if parts and missing:
        raise ValueError(f"{file} lacks {', '.join(sorted(missing))} of its tuning: write it again with jaxwrap train")
    return wrapper, FcmTuning(**parts) if parts else None, notes
