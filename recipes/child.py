"""Running a stage as a child process that never outlives this one."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_child(command: list[str]) -> int:
    """Run a command to its end and return its exit status, 128 + n when signal n killed it.

    The child has a process group of its own, so that it gets each signal once: SIGINT, SIGTERM and SIGHUP are
    forwarded to it, and Ctrl-Z stops it together with this process. Should this process be killed, so is the child
    (on Linux; elsewhere the run folder's lock keeps a second one out). Call it from the main thread.
    """
    # Unbuffered, so that its lines and ours come out in order when both go to a file.
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=environment, process_group=0, preexec_fn=_begin_child(os.getpid())
    )

    def forward(number: int, _: FrameType | None) -> None:
        child.send_signal(number)

    def suspend(_: int, __: FrameType | None) -> None:
        child.send_signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        child.send_signal(signal.SIGCONT)  # reached when this process is continued

    handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), forward) | {signal.SIGTSTP: suspend}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def _begin_child(parent: int) -> Callable[[], None]:
    """What the child does before it becomes the command.

    It listens to Ctrl-C, which a shell's background jobs are started deaf to: what we forward is meant. And it asks
    the kernel (on Linux) to be killed when its parent dies.
    """
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None

    def begin() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before we asked
                os._exit(1)

    return begin
