"""Run as a program: becomes another one, after asking the kernel to end it with the process that started it.

``python -I -S die_with_parent.py PARENT_PID SIGNAL PROGRAM ARGUMENT…``

However the parent ends, SIGKILL included, nothing of its own is left behind. An exec keeps that wish. Where there is no
such wish to be made, which is everywhere but on Linux, this only becomes the program.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(sys.argv[2]))
        if os.getppid() != int(sys.argv[1]):
            sys.exit("the parent is gone")
    os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606 - to become the program is the purpose
