"""Shared fixtures. JAX is strict here, and has 8 host devices so that sharding is tested on any machine.

Compilation is most of the tests' time, so XLA leaves the slow part of its optimisation of machine code out, here and in
the processes that tests start. Tests of properties that this code could have and optimised code lack (the same bytes
from other batches, devices or shards; memory) ask for the fixture ``optimised_programs``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Operations that use a thread pool of their own inside eight devices on two cores wait for each other for ever.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false"]
).strip()

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# Again, in case a plugin imported JAX before.
jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real pictures, clips and networks: ``../shared/data`` beside the project, or ``$JAXWRAP_SHARED``."""
    folder = Path(os.environ.get("JAXWRAP_SHARED", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no {folder}: this test uses real pictures (set JAXWRAP_SHARED to their folder)")
    return folder


def _set_options(options: dict[str, object]) -> Iterator[None]:
    """These options of JAX, here and in processes that start meanwhile, until the generator goes on."""
    before = {name: jax.config.values[name] for name in options}
    inherited = {name: os.environ.get(name) for name in map(str.upper, options)}
    os.environ.update({name.upper(): str(value) for name, value in options.items()})
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    for name, text in inherited.items():
        os.environ.pop(name)
        if text is not None:
            os.environ[name] = text


@pytest.fixture(scope="module")
def optimised_programs() -> Iterator[None]:
    """Programs are compiled as users have them."""
    yield from _set_options({"jax_disable_most_optimizations": False})


@pytest.fixture(scope="module")
def programs_on_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a process has compiled, the others take from a folder."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    compilation_cache.reset_cache()
    yield from _set_options(options)
    compilation_cache.reset_cache()
