"""SIGKILL of the verbs that write, each before a change to a file that the seed chooses: run again, they leave what an undisturbed run leaves.

`benchmarks/kills.py` kills every verb at any moment, by the clock; training and sweeps have tests of their own.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import here

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from kills import JOBS, Job, clocks_of, differences, end_of, write_jobs

SLOWEST_S, KILLS = 120.0, 2
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
VERBS = [job for job in JOBS if job.verb not in ("train", "sweep", "plan")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("kills") / "base"
    write_jobs(folder, documents=60, prompts=6)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fork has none of the others
    yield folder
    torch.set_num_threads(threads)


class Changes:
    """Counts a process's changes to the files in a folder; kills it before that of number `last`."""

    def __init__(self, folder: Path, last: int | None = None) -> None:
        self.folder, self.last, self.num = str(folder), last, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(args[2], int) and args[2] & WRITING
        if (opened or event in CHANGES) and str(args[0]).startswith(self.folder):
            self.num += 1
            if self.num == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


def forked(job: Job, base: Path, out: Path, last: int | None = None) -> int:
    """The job in a process of its own, killed before its change of that number: how many there were. It may not end before that."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            changes = Changes(out, last)
            sys.addaudithook(changes)
            code, _, talk = here(words_of(job, base, out))
            os.write(writing, f"{code if last is None else 'not killed'} {changes.num} {talk}".encode()[:4000])
        finally:
            os._exit(0)
    os.close(writing)
    end = time.monotonic() + SLOWEST_S
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGABRT)
        time.sleep(0.005)
    with os.fdopen(reading) as said:
        words = said.read()
    if last is not None:
        assert os.WIFSIGNALED(done[1]), words
        assert os.WTERMSIG(done[1]) == signal.SIGKILL
        return last
    code, num, talk = words.split(" ", 2)
    assert code == "0", talk
    return int(num)


def words_of(job: Job, base: Path, out: Path) -> list[str]:
    out.mkdir(exist_ok=True)
    return [word.format(base=base, out=out) for word in job.words]


@pytest.mark.parametrize("job", VERBS, ids=lambda job: job.verb)
def test_a_killed_verb_run_again_leaves_what_an_undisturbed_one_leaves(
    job: Job, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base)
    first, second, draw = tmp_path / "first", tmp_path / "second", random.Random(job.verb)
    code, _, talk = here(words_of(job, base, first))  # in this process, so that forks have loaded all that it takes
    assert code == 0, talk
    num = forked(job, base, second)
    whole = end_of(first)
    clocks = clocks_of(job, whole, end_of(second))
    for i, last in enumerate(sorted(draw.sample(range(1, num + 1), min(KILLS, num)))):
        out = tmp_path / f"killed-{i}"
        forked(job, base, out, last)
        code, _, talk = here(words_of(job, base, out))
        assert code == 0 or "exists already" in talk, (last, num, talk)  # it had been whole
        assert differences(whole, clocks, end_of(out)) == [], (last, num)
