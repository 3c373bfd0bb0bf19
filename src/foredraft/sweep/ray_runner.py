"""Cells as tasks of a Ray cluster, each with the processors and accelerators it asks for.

All machines must see the sweep's folder, the data and the models under the same paths (shared storage), and have foredraft
installed: a task runs the same process as on one machine, and only its paths travel.

Promises: a cell that loses its machine fails like any other; nothing is run twice unasked. Refuses to know: order (the
driver keeps it).
"""

import logging
import os
from concurrent.futures import Future
from typing import Any

from foredraft.records import with_hint
from foredraft.sweep.job import Job, Outcome, execute

LOCAL = "local"
INSTALL = "--ray needs the package ray: pip install 'foredraft[sweep]'"


class RayRunner:
    """On the cluster at `address`, or on one of `workers` × `cpus` that is started here ("local") and ends with the sweep.

    Raises ValueError where ray is not installed, no cluster answers, or a local one could never hold a cell.
    """

    def __init__(self, address: str, workers: int = 1, cpus: float = 1.0, gpus: float = 0.0) -> None:
        if workers < 1 or cpus <= 0 or gpus < 0:
            raise ValueError(
                f"workers and cpus-per-cell must be positive, gpus-per-cell not negative; got {workers}, {cpus:g}, {gpus:g}"
            )
        self.slots: int | None = None
        self._ray = _connected(address, workers, cpus)
        self._running: dict[Any, Future[Outcome]] = {}
        self._task = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_task)
        self.note = self._short_of(cpus, gpus)
        if self.note and address == LOCAL:
            self.close()
            raise ValueError(self.note)

    def _short_of(self, cpus: float, gpus: float) -> str | None:
        """A line where no machine of the cluster could hold a cell now."""
        nodes = [node.get("Resources", {}) for node in self._ray.nodes() if node.get("Alive")]
        if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            return None
        return (
            f"no machine of the cluster has {cpus:g} CPUs and {gpus:g} GPUs at once: cells would wait until one joins"
        )

    def start(self, job: Job) -> "Future[Outcome]":
        reference = self._task.remote(job)
        answer: Future[Outcome] = Future()
        answer.set_running_or_notify_cancel()
        self._running[reference] = answer

        def pass_on(task: "Future[Outcome]") -> None:
            self._running.pop(reference, None)
            answer.set_result(self._outcome(task))

        reference.future().add_done_callback(pass_on)
        return answer

    def _outcome(self, task: "Future[Outcome]") -> Outcome:
        """Of a task; what Ray itself has to say of it (a machine lost, memory run out) as the cell's failure."""
        error = task.exception()
        if error is None:
            return task.result()
        stopped = isinstance(error, self._ray.exceptions.TaskCancelledError | KeyboardInterrupt)
        message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return Outcome(
            seconds=0.0, host="ray", error=None if stopped else f"{type(error).__name__}: {message}", stopped=stopped
        )

    def stop(self) -> None:
        for reference in list(self._running):
            self._ray.cancel(reference, force=False)

    def close(self) -> None:
        self._ray.shutdown()


def _task(job: Job) -> Outcome:
    """On a worker."""
    try:
        return execute(job)
    except KeyboardInterrupt:
        return Outcome(seconds=0.0, host=os.uname().nodename, stopped=True)


def _connected(address: str, workers: int, cpus: float) -> Any:
    """Ray, connected."""
    try:
        import ray
    except ImportError:
        raise with_hint(ValueError(INSTALL), "or leave out --ray") from None
    try:
        if address == LOCAL:
            size = max(1, round(workers * cpus))
            ray.init(
                address=LOCAL, num_cpus=size, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ValueError(f"--ray {address}: {str(error).splitlines()[0]}") from None
    return ray
