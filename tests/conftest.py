"""Shared fixtures. JAX is strict here, and has 8 host devices so that sharding is tested on any machine."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Operations that use a thread pool of their own inside eight devices on two cores wait for each other for ever.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false"]
).strip()

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real pictures, clips and networks: ``../shared/data`` beside the project, or ``$JAXWRAP_SHARED``."""
    folder = Path(os.environ.get("JAXWRAP_SHARED", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no {folder}: this test uses real pictures (set JAXWRAP_SHARED to their folder)")
    return folder
