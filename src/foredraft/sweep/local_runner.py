"""Cells on this machine, in as many processes at once as there are workers.

Promises: asked to stop, every process gets the time to save. Refuses to know: which cells, in which order.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Protocol

from foredraft.sweep.job import Job, Outcome, execute


class Runner(Protocol):
    """Where jobs run. `slots`: how many at once are worth starting, None where a cluster queues them itself."""

    slots: int | None

    def start(self, job: Job) -> "Future[Outcome]": ...

    def stop(self) -> None:
        """Ask all that run to stop; those that wait end at once."""
        ...

    def close(self) -> None: ...


class LocalRunner:
    """`workers` processes at once."""

    def __init__(self, workers: int = 1) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.slots: int | None = workers
        self._stop = Event()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="cell")

    def start(self, job: Job) -> "Future[Outcome]":
        return self._pool.submit(execute, job, self._stop.is_set)

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self._pool.shutdown(wait=True)
