"""The sandbox around the attack suite: what an attack does where our own sandbox lets it through stays in here.

Its own processes, IPC, network and mounts; everything read-only but small private /tmp, /dev/shm, /run and /var/tmp,
and the control groups, which the judge's last layer needs.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIZE = 512 << 20
EMPTIED = ("/tmp", "/run", "/var/tmp")
NEEDED = [Path(sys.base_prefix).resolve(), Path(sys.prefix).absolute(), ROOT]


def outer_command() -> list[str]:
    """The command that runs another one inside."""
    command = ["bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-net", "--unshare-uts", "--die-with-parent"]
    command += ["--ro-bind", "/", "/"]
    command += _opened(NEEDED)
    for folder in EMPTIED:
        command += ["--size", str(SIZE), "--perms", "1777", "--tmpfs", folder]
    command += ["--dev", "/dev", "--size", str(SIZE), "--perms", "1777", "--tmpfs", "/dev/shm", "--proc", "/proc"]
    # Last: a checkout under /tmp is there, too, however deep, and open to other users.
    for folder in NEEDED:
        for parent in reversed(folder.parents):
            if any(parent.is_relative_to(place) and parent != Path(place) for place in EMPTIED):
                command += ["--perms", "0755", "--dir", str(parent)]
        command += ["--ro-bind", str(folder), str(folder)]
    if os.access("/sys/fs/cgroup", os.W_OK):
        command += ["--bind", "/sys/fs/cgroup", "/sys/fs/cgroup"]
    return [*command, "--chdir", str(ROOT), "--"]


def _opened(needed: list[Path]) -> list[str]:
    """Folders above what is needed that are closed to others, replaced by open ones: where there are no namespaces,
    programs read the interpreter as another user."""
    options: list[str] = []
    done: set[Path] = set()
    for path in needed:
        closed = False
        for folder in reversed(path.parents):
            closed = closed or not folder.stat().st_mode & stat.S_IXOTH
            if closed and folder not in done:
                first = not any(parent in done for parent in folder.parents)
                options += ["--perms", "0755", "--tmpfs" if first else "--dir", str(folder)]
                done.add(folder)
    return options
