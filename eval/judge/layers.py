"""What this machine lets the judge put between a program and itself: six layers, each found out by trying it.

1 process     a session of its own, a deadline, capped output, nothing of the judge's memory
2 rlimits     address space, CPU time, file size, open files
3 uid         an unprivileged user that no other sandbox runs under (needs root)
4 namespaces  bubblewrap: own processes, network, IPC, mounts; a read-only view of the system, small private tmpfs
5 seccomp     system calls that no program of a contest needs are refused
6 cgroup      memory and processes of all together are capped

The level is the highest layer with all below it in place, but for `uid`, whose absence is only said: without root
there is one user, and the namespaces keep its processes apart.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from core_model.errors import InputError
from eval.judge.case import Isolation
from eval.judge.cgroup import MemoryGroup
from eval.judge.languages import LANGUAGES
from eval.judge.seccomp import compile_filter

LAYERS = ("process", "rlimits", "uid", "namespaces", "seccomp", "cgroup")
NAMESPACES = LAYERS.index("namespaces") + 1  # model-written programs are refused below
FULL = len(LAYERS)

NOBODY = 65534  # shared by all: what programs run under as root where they are not to have a uid of their own
PROBE_SECONDS = 20.0
INSIDE = Path(__file__).with_name("inside")


@dataclass(frozen=True)
class Layers:
    """The layers a sandbox is built with, and why the others are not."""

    present: frozenset[str]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def isolation(self) -> Isolation:
        level = 2 if "rlimits" in self.present else 1
        if "namespaces" in self.present:
            level = 4
            for layer in ("seccomp", "cgroup"):
                if layer not in self.present:
                    break
                level += 1
        elif "uid" in self.present and level == 2:
            level = 3
        return Isolation(level, tuple(name for name in LAYERS if name in self.present), dict(self.missing))

    @property
    def shared_uid(self) -> int | None:
        """The uid to drop to where there is none of its own; None: stay."""
        return NOBODY if os.geteuid() == 0 else None


def isolation_fault(layers: Layers) -> InputError | None:
    """Why programs that a model wrote are refused behind these layers, None when they are not."""
    if layers.isolation.level >= NAMESPACES:
        return None
    return InputError(
        "judge",
        expected=f"isolation level {NAMESPACES}, bubblewrap's namespaces, around programs that a model wrote",
        found=f"{layers.missing['namespaces']} (`trivium doctor` shows every layer; judge.allow_unsandboxed=true or "
        "--allow-unsandboxed does without: docs/judge.md)",
    )


def print_layers() -> None:
    """What keeps judged programs in on this machine, layer by layer, each by trying it."""
    found = find_layers()
    print(f"judge: isolation {found.isolation}")
    for level, name in enumerate(LAYERS, 1):
        state = "in place" if name in found.present else f"missing: {found.missing[name]}"
        print(f"  {level} {name:<11} {state}")
    if found.isolation.level < NAMESPACES:
        print(f"  programs that a model wrote are refused below level {NAMESPACES} (docs/judge.md)")
    for name, language in LANGUAGES.items():
        compiler = language.missing()
        print(f"  {name:<13} {'can be judged' if compiler is None else f'needs {compiler}'}")


@functools.cache
def find_layers(highest: int = FULL) -> Layers:
    """Try every layer up to the `highest`; the result is kept for the life of the process."""
    if sys.platform != "linux":
        raise InputError("judge", expected="Linux, whose sandbox it needs", found=sys.platform)
    present, missing = {"process", "rlimits"}, {}
    tries: dict[str, Callable[[frozenset[str]], str | None]] = {
        "uid": lambda _: _try_uid(),
        "namespaces": lambda _: try_namespaces(None),
        "seccomp": _try_seccomp,
        "cgroup": lambda _: MemoryGroup.reason_against(),
    }
    for level, name in enumerate(LAYERS, 1):
        if name not in tries:
            continue
        reason = tries[name](frozenset(present)) if level <= highest else "not asked for"
        if reason is None:
            present.add(name)
        else:
            missing[name] = reason
    # bubblewrap shows the interpreter at another place; without, it is run from where it stands.
    if "namespaces" not in present and os.geteuid() == 0 and (reason := _try_outside()) is not None:
        present.discard("uid")
        missing["uid"] = reason
    return Layers(frozenset(present), missing)


def _try_uid() -> str | None:
    if os.geteuid() != 0:
        return "not root: programs run under your own uid"
    program = f"import os; os.setgroups([]); os.setresgid(*[{NOBODY}] * 3); os.setresuid(*[{NOBODY}] * 3)"
    return _run([sys.executable, "-S", "-c", program])


def _try_outside() -> str | None:
    """Why a user without rights cannot run the interpreter where it stands; None when one can."""
    program = f"import os; os.setgroups([]); os.setresuid(*[{NOBODY}] * 3); import json"
    if _run([*interpreter(inside=False), "-c", program]) is None:
        return None
    return f"other users cannot read the interpreter in {Path(sys.base_prefix).resolve()}: no program can run"


def _try_seccomp(present: frozenset[str]) -> str | None:
    if "namespaces" not in present:
        return "no namespaces"
    try:
        rules = compile_filter()
    except InputError as error:
        return error.found
    return try_namespaces(rules)


def try_namespaces(rules: bytes | None) -> str | None:
    """Why bubblewrap does not start an interpreter here; None when it does."""
    if shutil.which("bwrap") is None:
        return "no bwrap: install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap)"
    with tempfile.TemporaryFile() as file:
        file.write(rules or b"")
        file.seek(0)
        command = bubblewrap(1 << 20, file.fileno() if rules else None)
        return _run([*command, *interpreter(inside=True), "-c", "pass"], (file.fileno(),))


def _run(command: list[str], files: tuple[int, ...] = ()) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=PROBE_SECONDS, pass_fds=files, stdin=subprocess.DEVNULL, env={}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def interpreter(*, inside: bool) -> list[str]:
    """A bare interpreter: no site-packages, nothing of the user's, no bytecode written, no folder put on the path.

    Args:
        inside: as bubblewrap shows it. One that is not the system's stands at /python there: the folders above it may
            be closed to everybody but their owner.
    """
    program, base = Path(sys.executable).resolve(), _foreign_base()
    if inside and base is not None and program.is_relative_to(base):
        program = Path("/python") / program.relative_to(base)
    return [str(program), "-s", "-S", "-P", "-B"]


def _foreign_base() -> Path | None:
    base = Path(sys.base_prefix).resolve()
    return None if base.is_relative_to("/usr") else base


def numpy_folders() -> list[Path]:
    """The folders of numpy and its libraries, where it is installed; found without importing it."""
    import importlib.util

    found = importlib.util.find_spec("numpy")
    if found is None or found.origin is None:
        return []
    package = Path(found.origin).resolve().parent
    libraries = package.with_name("numpy.libs")
    return [package, *([libraries] if libraries.is_dir() else [])]


def bubblewrap(disk_bytes: int, filter_file: int | None) -> list[str]:
    """The command that starts another one inside. What is visible there: the system's programs and libraries, the
    interpreter, numpy and the judge's own inside; all read-only. What can be written: /tmp and /dev/shm.

    Args:
        disk_bytes: size of each of the two.
        filter_file: an open file with seccomp's instructions.
    """
    size = str(disk_bytes)
    # Where the user's PATH has it; what starts it has a PATH of its own.
    command = [shutil.which("bwrap") or "bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-net", "--unshare-uts"]
    command += ["--unshare-cgroup-try"]
    command += ["--as-pid-1", "--hostname", "judge"]
    if os.geteuid() != 0:
        command += ["--unshare-user", "--disable-userns"]
    for path in ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin"):
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            command += ["--ro-bind", path, path]
    for path in ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"):
        command += ["--ro-bind-try", path, path]
    if (base := _foreign_base()) is not None:
        command += ["--ro-bind", str(base), "/python"]
    command += ["--ro-bind", str(INSIDE), "/judge", "--perms", "0755", "--dir", "/site"]
    for folder in numpy_folders():
        command += ["--ro-bind", str(folder), f"/site/{folder.name}"]
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--size", size, "--perms", "1777", "--tmpfs", "/dev/shm"]
    command += ["--size", size, "--perms", "1777", "--tmpfs", "/tmp", "--chdir", "/tmp"]
    command += ["--remount-ro", "/", "--clearenv"]
    libraries = {} if base is None else {"LD_LIBRARY_PATH": "/python/lib"}  # of an interpreter built as one
    for name, value in (ENVIRONMENT | libraries).items():
        command += ["--setenv", name, value]
    if filter_file is not None:
        command += ["--seccomp", str(filter_file)]
    return [*command, "--"]


# A fixed hash seed: a program that prints a set gives the same verdict twice.
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",  # see inside/zygote.py
}
