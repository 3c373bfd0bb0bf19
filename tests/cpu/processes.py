"""Training in processes of their own, which can be killed, limited and joined; a server that has torch loaded forks them."""

import multiprocessing
import os
import resource
import socket
import time
from pathlib import Path

from foredraft.train.devices import started
from foredraft.train.launch import launch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["foredraft.train.launch"])


def start(recipe, out, folders, *, target=None, environment=(), shard=False, file_bytes=None):
    """A process that trains; what stops it is written to `out`.error."""
    arguments = (recipe, out, folders, target, dict(environment), shard, file_bytes)
    process = SERVER.Process(target=_train, args=arguments, daemon=True)
    process.start()
    return process


def _train(recipe, out, folders, target, environment, shard, file_bytes):
    os.environ.update(environment)
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    try:
        with started("cpu", shard) as devices:
            launch(recipe, out, devices, target=target, data=[folders[0]], held_out=folders[1])
    except ValueError as error:
        out.with_suffix(f".error{environment.get('RANK', '')}").write_text(str(error))
        raise SystemExit(2) from None


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


def ended(process, seconds=60):
    process.join(seconds)
    assert process.exitcode is not None, f"still running after {seconds} s"
    return process.exitcode


def reached(process, metrics: Path, step: int, seconds=60):
    """Wait until the run has written `step` lines; False where it ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if metrics.is_file() and metrics.read_bytes().count(b'"learning_rate"') >= step:
            return True
        if process.exitcode is not None:
            return False
        time.sleep(0.002)
    raise AssertionError(f"step {step} not reached in {seconds} s")
