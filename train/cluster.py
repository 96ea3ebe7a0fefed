"""A Dask cluster as a place for this package's tasks.

A task that loses its worker is started again elsewhere, by Dask. Give each worker process one thread (``dask worker
--nthreads 1``): encoders and maps are counted on one core each. On a Slurm cluster ``dask_jobqueue.SLURMCluster``
starts the workers (``cluster.scale(jobs=32)``), or ``srun dask worker --nthreads 1 --scheduler-file scheduler.json``
beside one ``dask scheduler --scheduler-file scheduler.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import distributed


@contextmanager
def connected(address: str, *, timeout_s: float = 30.0) -> Iterator[distributed.Client]:
    """A client of the scheduler at ``address``, ``tcp://host:8786``. Raises `RuntimeError` where none answers."""
    import dask
    from distributed import Client

    # Frames travel within tasks, so that a task can be started again when the worker that held it is gone.
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "4GiB"}):
        try:
            client = Client(address, timeout=timeout_s)
        except (OSError, TimeoutError, ValueError) as error:
            raise RuntimeError(
                f"no Dask scheduler answers at {address} ({error}): start one with dask scheduler, give its address"
            ) from error
        with client:
            yield client


def next_finished(futures: set[distributed.Future], timeout_s: float | None = None) -> set[distributed.Future]:
    """Those that have ended, as soon as there is one; none where ``timeout_s`` seconds passed first."""
    from distributed import wait

    try:
        return set(wait(futures, timeout=timeout_s, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return set()
