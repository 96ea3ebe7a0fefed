"""State dicts from files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from jaxwrap.train.state_dicts import read_state_dict

ARRAYS = {"conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bn.num_batches_tracked": np.asarray(4)}


def test_npz_files_hold_arrays_by_key(tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", allow_pickle=False, **ARRAYS)
    found = read_state_dict(tmp_path / "weights.npz")
    assert set(found) == set(ARRAYS)
    np.testing.assert_array_equal(found["conv.weight"], ARRAYS["conv.weight"])


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        read_state_dict(tmp_path / "none.pth")
    (tmp_path / "half.npz").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(ValueError, match=r"half\.npz is not a sound npz file"):
        read_state_dict(tmp_path / "half.npz")


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_without_torch_its_files_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"anything")
    with pytest.raises(ModuleNotFoundError, match="pip install torch; or write the weights as npz"):
        read_state_dict(tmp_path / "weights.pth")


def test_files_of_torch_hold_tensors_by_key(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: it writes these files")
    torch.save({key: torch.from_numpy(np.array(value)) for key, value in ARRAYS.items()}, tmp_path / "weights.pth")
    found = read_state_dict(tmp_path / "weights.pth")
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(found[key], array)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state_dict(tmp_path / "list.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "weights.pth").read_bytes()[:100])
    with pytest.raises(ValueError, match="not a sound file of weights"):
        read_state_dict(tmp_path / "half.pth")
