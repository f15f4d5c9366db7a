"""A control group for one sandbox: memory and processes of all its processes together (version 1 and version 2)."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_numbers = itertools.count()


class MemoryGroup:
    """A new control group under our own.

    Raises:
        OSError: it cannot be made or written to; `reason_against` says so beforehand.
    """

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self._open: dict[str, int] = {}
        self.unified = (ROOT / "cgroup.controllers").exists()
        name = f"trivium-judge-{os.getpid()}-{next(_numbers)}-{_pid_namespace()}"
        own = _own_groups()
        try:
            for controller in ("memory", "pids", "cpuacct"):
                path = own["" if self.unified else controller] / name
                if path not in self.folders.values():
                    path.mkdir()
                self.folders[controller] = path
            self.limit_memory(1 << 40)
        except (OSError, KeyError) as error:
            self.remove()
            raise error if isinstance(error, OSError) else OSError(f"no cgroup controller {error}") from error

    @property
    def entries(self) -> list[Path]:
        """The files into which a process writes its number to enter."""
        return [path / "cgroup.procs" for path in dict.fromkeys(self.folders.values())]

    def limit_memory(self, limit: int) -> None:
        """Cap the memory of all together, swap included, in bytes."""
        memory = self.folders["memory"]
        if self.unified:
            (memory / "memory.max").write_text(str(limit))
            with contextlib.suppress(FileNotFoundError):  # no swap accounting in this kernel
                (memory / "memory.swap.max").write_text("0")
            return
        both, alone = memory / "memory.memsw.limit_in_bytes", memory / "memory.limit_in_bytes"
        order = [alone, both] if not both.exists() or int(both.read_text()) >= limit else [both, alone]
        for file in order:
            if file.exists():
                file.write_text(str(limit))

    def limit_processes(self, count: int) -> None:
        """Cap the number of processes and threads of all together."""
        (self.folders["pids"] / "pids.max").write_text(str(count))

    def cpu_seconds(self) -> float:
        """CPU time of all its processes so far."""
        if self.unified:
            line = self._read("memory", "cpu.stat").split(b"\n", 1)[0]
            return int(line.split()[1]) / 1e6  # usage_usec comes first, with or without the controller
        return int(self._read("cpuacct", "cpuacct.usage")) / 1e9

    def kills(self) -> int:
        """How many of its processes were ended for want of memory so far."""
        text = self._read("memory", "memory.events" if self.unified else "memory.oom_control")
        _, _, rest = text.partition(b"\noom_kill ")
        return int(rest.split(b"\n", 1)[0]) if rest else 0

    def has_been_full(self) -> bool:
        """Whether its memory has ever reached the cap."""
        if self.unified:
            _, _, rest = self._read("memory", "memory.events").partition(b"\noom ")
            return bool(rest) and int(rest.split(b"\n", 1)[0]) > 0
        # Not the count of failures, which stays 0 in some kernels.
        most, cap = (self._read("memory", f"memory.{name}_in_bytes") for name in ("max_usage", "limit"))
        return int(most) >= int(cap)

    def _read(self, controller: str, name: str) -> bytes:
        """A file of the group's, kept open: it is read after every test."""
        if name not in self._open:
            self._open[name] = os.open(self.folders[controller] / name, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._open[name], 4096, 0)

    def remove(self) -> None:
        """Remove it; its processes must have ended (the kernel needs a moment to forget them)."""
        while self._open:
            os.close(self._open.popitem()[1])
        for path in dict.fromkeys(self.folders.values()):
            for _ in range(100):
                try:
                    path.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.01)
                else:
                    break

    @classmethod
    def reason_against(cls) -> str | None:
        """Why there can be none here; None when there can."""
        _sweep()
        try:
            group = cls()
        except OSError as error:
            return str(error.strerror or error)
        try:
            group.limit_processes(64)
            group.limit_memory(1 << 30)
        except OSError as error:
            return str(error.strerror or error)
        finally:
            group.remove()
        return None


def _pid_namespace() -> int:
    """Containers number their processes each from 1, and may share the folder of control groups."""
    return os.stat("/proc/self/ns/pid").st_ino


def _sweep() -> None:
    """Remove the groups of judges that were killed; those in use cannot be removed."""
    with contextlib.suppress(OSError, KeyError):
        for folder in set(_own_groups().values()):
            for left in folder.glob(f"trivium-judge-*-{_pid_namespace()}"):
                if not Path("/proc", left.name.split("-")[2]).exists():
                    with contextlib.suppress(OSError):
                        left.rmdir()


def _own_groups() -> dict[str, Path]:
    """The folder of the group this process is in, by controller ("" in version 2)."""
    groups = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            base = ROOT / controller if controller else ROOT
            groups[controller] = base / path.lstrip("/")
    return groups
