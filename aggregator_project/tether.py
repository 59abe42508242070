"""Ties a process to its parent: when the parent dies, however it dies, the process is killed.

Run as a script it ties itself and becomes a command: `python tether.py PARENT-PID command…`. It imports next to
nothing, because every part of the stack starts through it.
"""

import ctypes
import os
import signal
import sys

#: From <linux/prctl.h>.
PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies. Call it before the process starts threads.

    SIGKILL, because a part may hang, and because what takes its place needs its port at once. Nothing accepted is lost
    by it, as by any crash: it is on disk, and a chunk that was being stored is rolled back.

    On Linux only: macOS has nothing like it, so there a part outlives a supervisor that was killed with SIGKILL until
    it is stopped by hand. Every other end of the supervisor stops its parts there too.

    Args:
        parent: process id of the parent, to notice one that has died already.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 (a shell would stand between the two)
