"""Reads PyTorch state dicts as arrays by key."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, or the tensors of a file of `torch.save` (read without running code; needs torch).

    Raises `FileNotFoundError`; `ModuleNotFoundError` where torch is needed and missing; `ValueError` for a file that is
    damaged or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path} of weights")
    return _read_npz(path) if path.suffix == ".npz" else _read_torch(path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            return {**file}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a sound npz file ({error}): fetch or write it again") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is a file of PyTorch's, which is not installed: pip install torch; or write the weights as npz "
            "where it is: numpy.savez('weights.npz', **{k: v.numpy() for k, v in torch.load(file).items()})"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises what it likes
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} is not a sound file of weights ({reason[0]}): fetch or write it again") from error
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise ValueError(f"{path} holds no state dict; wanted tensors by key: save module.state_dict()")
    return {key: value.numpy() for key, value in state.items()}
