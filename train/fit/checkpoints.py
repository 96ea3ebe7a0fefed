"""Wrapper files (one ``.npz`` with its configuration inside) and the resumable state of a training run (Orbax)."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.typing import DTypeLike

from jaxwrap.codecs.files import write_atomically
from jaxwrap.parameters import assign_parameters, named_parameters
from jaxwrap.wrappers.switchable import Wrapper, WrapperConfig, wrapper_from_config

SUFFIX = ".wrapper.npz"

FORMAT = 1
"""Number of the layout of wrapper files; it grows when older readers would misread a newer file."""


def save_wrapper(path: Path, wrapper: Wrapper, *, notes: dict[str, Any]) -> None:
    """Writes configuration, parameters and ``notes`` (how it was trained) to one file, by way of a temporary name."""
    meta = json.dumps({"format": FORMAT, "config": wrapper.config.to_dict(), "notes": notes}, sort_keys=True)
    content = io.BytesIO()
    np.savez(content, __meta__=np.array(meta), **named_parameters(wrapper))  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def load_wrapper(path: str | Path, *, dtype: DTypeLike = jnp.float32) -> tuple[Wrapper, dict[str, Any]]:
    """A wrapper and the notes beside it, from a file or from the name of a shipped checkpoint (``pair-1of2``, …).

    ``dtype`` is that of its activations; parameters are float32.
    Raises `FileNotFoundError` naming what ships, or `ValueError` where the file is no wrapper or does not fit its
    configuration.
    """
    file = wrapper_file(path)
    config, notes, arrays = _read(file)
    wrapper = nnx.eval_shape(lambda: wrapper_from_config(config, dtype=dtype))
    assign_parameters(wrapper, arrays, source=str(file))
    return wrapper, notes


def _read(file: Path) -> tuple[WrapperConfig, dict[str, Any], dict[str, np.ndarray]]:
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .npz archive, or was cut short")
        with np.load(file) as archive:
            arrays = dict(archive)
        if "__meta__" not in arrays:
            raise ValueError("it has no entry __meta__, which says what network it is")
        meta = json.loads(str(arrays.pop("__meta__")))
        if isinstance(meta, dict) and "kind" in meta:
            raise ValueError("it is a wrapper of a network's features: jaxwrap evaluate takes it with --task")
        if not isinstance(meta, dict) or meta.get("format") != FORMAT or "config" not in meta:
            raise ValueError(f"its __meta__ is no description in format {FORMAT}")
        return WrapperConfig.from_dict(meta["config"]), dict(meta.get("notes", {})), arrays
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is not a wrapper file ({error}); `jaxwrap train` writes them as *{SUFFIX}") from error


def shipped_wrappers() -> dict[str, Path]:
    """Names and files of the checkpoints that come with the package."""
    folder = Path(str(resources.files("jaxwrap.train"))) / "checkpoints"
    return {file.name.removesuffix(SUFFIX): file for file in sorted(folder.glob(f"*{SUFFIX}"))}


def wrapper_file(path: str | Path) -> Path:
    """The file that a path, a training folder or a shipped name means. Raises `FileNotFoundError` naming what ships."""
    shipped = shipped_wrappers()
    if str(path) in shipped:
        return shipped[str(path)]
    file = Path(path)
    if file.is_dir():
        file = file / f"best{SUFFIX}"
    if not file.is_file():
        raise FileNotFoundError(
            f"no wrapper at {path}; give a *{SUFFIX} file, a training folder, or a shipped name: {', '.join(shipped)}"
        )
    return file


_MARGIN = 2**20  # bytes that a state takes beside its arrays, with room for the log and the wrapper files


class Stepped(Protocol):
    """The state of a training run of any kind: a pytree that knows its step."""

    @property
    def step(self) -> jax.Array:
        """Steps that were done."""
        ...


State = TypeVar("State", bound=Stepped)


class RunStates:
    """The states of one training run, written atomically, the two newest kept."""

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager((folder / "states").absolute(), options=options)

    def save(self, state: Stepped) -> None:
        """Blocks until the state is safe on disk. Raises `OSError` where the disk is full; older states are kept."""
        step = int(state.step)
        # Asked first, because threads of Orbax and TensorStore meet a full disk with pages of tracebacks.
        needed = _MARGIN + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        if shutil.disk_usage(self._manager.directory).free < needed:
            raise self._disk_full(step)
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state))
            self._manager.wait_until_finished()
        except Exception as error:  # they tell it by errors of many types
            if not any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
                raise
            raise self._disk_full(step) from error

    def _disk_full(self, step: int) -> OSError:
        return OSError(
            errno.ENOSPC,
            f"the disk is full: the state of step {step} was not written to {self._manager.directory}, older ones are "
            "kept; free some space and run the same command again",
        )

    def latest(self, like: State) -> State | None:
        """The newest whole state, placed like ``like``; None where there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored: State = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        return restored

    def close(self) -> None:
        """Releases the manager's threads."""
        self._manager.close()
