"""Training in processes of their own, which can be killed, limited and joined; a server that has torch loaded forks them."""

import multiprocessing
import os
import resource
import signal
import socket
import time
from pathlib import Path

from foredraft.train.devices import started
from foredraft.train.launch import launch
from foredraft.train.progress import Metrics

SLOWEST_S = 300.0  # on a machine with much else to do
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["foredraft.train.launch"])


def start(recipe, out, folders, *, target=None, environment=(), shard=False, file_bytes=None, dies=None):
    """A process that trains; what stops it is written to `out`.error. `dies`: behind a step, after so many seconds of its own work, however
    little of the machine it has, by a signal that nobody catches: SIGPROF.
    """
    arguments = (recipe, out, folders, target, dict(environment), shard, file_bytes, dies)
    process = SERVER.Process(target=_train, args=arguments, daemon=True)
    process.start()
    return process


def _train(recipe, out, folders, target, environment, shard, file_bytes, dies):
    os.environ.update(environment)
    if dies:
        _die(*dies)
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    try:
        with started("cpu", shard) as devices:
            launch(recipe, out, devices, target=target, data=[folders[0]], held_out=folders[1])
    except ValueError as error:
        out.with_suffix(f".error{environment.get('RANK', '')}").write_text(str(error))
        raise SystemExit(2) from None


def _die(step, work_s):
    write = Metrics.write

    def writing(self, figures):
        write(self, figures)
        if figures["step"] == step and "learning_rate" in figures:
            signal.setitimer(signal.ITIMER_PROF, work_s)

    Metrics.write = writing


def together(recipe, out, folders, *, world=2, shard=False, target=None):
    """The same run on `world` processes joined by gloo; their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        start(
            recipe,
            out,
            folders,
            target=target,
            shard=shard,
            environment=shared | {"RANK": str(i), "LOCAL_RANK": str(i)},
        )
        for i in range(world)
    ]
    return [ended(process) for process in running]


def ended(process, seconds=SLOWEST_S):
    process.join(seconds)
    assert process.exitcode is not None, f"still running after {seconds} s"
    return process.exitcode


def reached(process, metrics: Path, step: int, seconds=SLOWEST_S):
    """Wait until the run has written `step` lines; False where it ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if metrics.is_file() and metrics.read_bytes().count(b'"learning_rate"') >= step:
            return True
        if process.exitcode is not None:
            return False
        time.sleep(0.002)
    raise AssertionError(f"step {step} not reached in {seconds} s")
