"""Run a command that is asked to stop (SIGTERM) when the process that started it dies, however that dies. On Linux; elsewhere it
goes on, and holds its cell's lock until it ends.

    python -m foredraft.sweep.leash COMMAND...

Promises: the command takes this process's place. Refuses to know: what it is.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h; kept over execve


def main(parent: int, command: list[str]) -> None:
    """`parent`: the id of the process whose death ends the command."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it could be watched
            raise SystemExit(128 + signal.SIGTERM)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
