"""One sandbox: a fork server (`inside/zygote.py`) behind the layers this machine has, and the socket to it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from eval.judge.case import Limits, Mode
from eval.judge.cgroup import MemoryGroup
from eval.judge.layers import ENVIRONMENT, INSIDE, Layers, bubblewrap, interpreter, numpy_folders
from eval.judge.seccomp import compile_filter

START_SECONDS = 60.0  # a fork server that is not ready by then is the machine's fault
ANSWER_SECONDS = 30.0  # beyond a job's own deadline; the fork server keeps that deadline itself
FIRST_UID, UIDS = 60600, 256  # a range that neither Debian nor systemd hands out
LOCKS = Path("/run/trivium-judge")
UNCOUNTED_SECONDS = 0.1  # beyond what its processes' own counts say; the fork server's share is a hundredth of that
SERVER_BYTES = 192 << 20  # of the fork server itself, in the memory group


class SandboxLost(Exception):
    """The sandbox did not start, or went away. `out_of_memory`: its memory group ended it, so the program did it."""

    def __init__(self, message: str, *, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


@dataclass(frozen=True)
class Ending:
    """How a job ended, as the fork server saw it.

    Args:
        status: exit status, or minus the signal.
        late: it was ended at its wall deadline.
        cpu, wall: seconds; memory_mb: largest resident set, MiB.
        out_of_memory: a process of its was ended for want of memory.
        machine_out_of_memory: one was ended for that reason, but not because of the sandbox's own cap.
    """

    status: int
    late: bool
    cpu: float
    wall: float
    memory_mb: float
    out_of_memory: bool
    machine_out_of_memory: bool


class UserLock:
    """A uid that no other sandbox on this machine runs under while this object is open.

    Raises:
        OSError: the locks cannot be written, or every uid is taken.
    """

    def __init__(self) -> None:
        folder = LOCKS
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            folder = Path(tempfile.gettempdir()) / "trivium-judge"
            folder.mkdir(mode=0o700, exist_ok=True)
        for uid in range(FIRST_UID, FIRST_UID + UIDS):
            self.file = os.open(folder / str(uid), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self.file)
                continue
            self.uid = uid
            return
        raise OSError(f"all {UIDS} uids of the judge are taken")

    def close(self) -> None:
        os.close(self.file)


class Sandbox:
    """A started sandbox; `run` gives it one job after another. Not for several threads at once.

    Args:
        layers: what to build it with.
        mode: in lcb-compat it imports what that mode needs.
        numpy: import numpy once for all; without, a program that wants it imports it itself.
        limits: `processes` and `disk_bytes` hold for the sandbox as a whole; the others come with each job.

    Raises:
        SandboxLost: it did not start.
    """

    def __init__(self, layers: Layers, mode: Mode, limits: Limits, *, numpy: bool = False) -> None:
        self.layers, self.mode, self.limits, self.numpy = layers, mode, limits, numpy
        self.dirty = False
        self.user: UserLock | None = None
        self.group: MemoryGroup | None = None
        self.folder: str | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        self.channel, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._start(inner)
        except BaseException as error:
            inner.close()
            self.close()
            if isinstance(error, OSError):
                raise SandboxLost(f"the sandbox does not start: {error}") from error
            raise

    def _start(self, inner: socket.socket) -> None:
        present = self.layers.present
        uid = self.layers.shared_uid
        if "uid" in present:
            self.user = UserLock()
            uid = self.user.uid
        if "cgroup" in present:
            self.group = MemoryGroup()
            self.group.limit_processes(self.limits.processes + 8)  # the fork server, and bubblewrap outside
        namespaces = "namespaces" in present
        files, command = [inner.fileno()], []
        with tempfile.TemporaryFile() as rules:
            if namespaces:
                if "seccomp" in present:
                    rules.write(compile_filter())
                    rules.seek(0)
                    files.append(rules.fileno())
                command += bubblewrap(self.limits.disk_bytes, rules.fileno() if "seccomp" in present else None)
            else:
                self.folder = tempfile.mkdtemp(prefix="trivium-judge-")
                if uid is not None:
                    os.chown(self.folder, uid, uid)
            config = {
                "channel": inner.fileno(),
                "uid": uid,
                "folder": self.folder or "/tmp",
                "writable": ["/tmp", "/dev/shm"] if namespaces else [self.folder],
                "import_from": ["/judge", "/site"] if namespaces else self._outside_folders(),
                "official": self.mode == "lcb-compat",
                "numpy": self.numpy,
                # Counted per uid (and user namespace): only where no process of others has this uid.
                "processes": self.limits.processes + 1 if namespaces or self.user else None,
            }
            zygote = "/judge/zygote.py" if namespaces else str(INSIDE / "zygote.py")
            command += [*interpreter(inside=namespaces), zygote, json.dumps(config)]
            if self.group is not None:  # before it is anything else; no thread of ours is involved, as with preexec_fn
                script = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 1; shift; done; shift; exec "$@"'
                command = ["/bin/sh", "-c", script, "enter", *map(str, self.group.entries), "--", *command]
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.errors,
                env=ENVIRONMENT, pass_fds=files, start_new_session=True, cwd="/",
            )  # fmt: skip
        inner.close()
        self.hello = self._receive(START_SECONDS)
        if self.group is not None:
            self._cap = 0
            self._kills = self.group.kills()
            self._used = self.group.cpu_seconds()
        self._machine_kills = _machine_kills()

    @staticmethod
    def _outside_folders() -> list[str]:
        return [str(INSIDE), *{str(folder.parent) for folder in numpy_folders()}]

    def run(self, job: Mapping[str, Any], files: Mapping[str, int]) -> Ending:
        """Run one job.

        Args:
            job: what `inside/zygote.py` reads; `wall`, `cpu`, `memory`, `file_bytes` among it.
            files: open files by name: program, stdin, stdout, stderr, result.

        Raises:
            SandboxLost: no answer came; the sandbox is closed.
        """
        try:
            if self.group is not None and self._cap != (cap := self._memory_cap(job)):
                self.group.limit_memory(cap)
                self._cap = cap
            message = json.dumps({**job, "files": list(files)}).encode()
            socket.send_fds(self.channel, [message], list(files.values()))
            reply = self._receive(job["wall"] + ANSWER_SECONDS)
        except (OSError, SandboxLost) as error:
            killed, _ = self._out_of_memory()
            self.close()
            raise SandboxLost(str(error), out_of_memory=killed) from error
        if "failed" in reply:
            self.close()
            raise SandboxLost(reply["failed"])
        self.dirty = reply["dirty"]
        own, machine = self._out_of_memory()  # asked each time: a later job is not to be blamed for this one's children
        if reply["status"] == 0 or reply["late"]:
            own = machine = False
        machine = machine and reply["status"] == -signal.SIGKILL
        return Ending(
            reply["status"],
            reply["late"],
            self._seconds(reply["cpu"]),
            reply["wall"],
            reply["rss_kb"] / 1024,
            own,
            machine,
        )

    def _seconds(self, counted: float) -> float:
        """CPU seconds of a job. The group's count where it is much more: the kernel does not count children whose
        parent ignores SIGCHLD."""
        if self.group is None:
            return counted
        before, self._used = self._used, self.group.cpu_seconds()
        used = self._used - before
        return used if used > counted + UNCOUNTED_SECONDS else counted

    def _memory_cap(self, job: Mapping[str, Any]) -> int:
        return job["memory"] + 2 * self.limits.disk_bytes + 3 * job["file_bytes"] + SERVER_BYTES

    def _out_of_memory(self) -> tuple[bool, bool]:
        """Whether a process of its was ended since the last time for want of memory: its own cap's, the machine's.

        The kernel counts both kinds of kill for the group of the process it ends, and only for that group: other
        sandboxes' programs have no part in it. Without a group there is the machine's count alone.
        """
        if self.group is None:
            earlier, self._machine_kills = self._machine_kills, _machine_kills()
            return False, self._machine_kills > earlier
        before, self._kills = self._kills, self.group.kills()
        if self._kills == before:
            return False, False
        own = self.group.has_been_full()
        return own, not own

    def _receive(self, seconds: float) -> dict[str, Any]:
        self.channel.settimeout(seconds)
        try:
            data = self.channel.recv(1 << 16)
        except TimeoutError:
            raise SandboxLost(f"the sandbox did not answer within {seconds:.0f} s") from None
        if not data:
            raise SandboxLost(f"the sandbox ended{self._last_words()}")
        return json.loads(data)

    def _last_words(self) -> str:
        """What its start left on stderr; programs have files of their own."""
        lines = os.pread(self.errors.fileno(), 4000, 0).decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def kill(self) -> None:
        """From another thread: end it, so that whoever waits for an answer is told that it is lost."""
        process = self.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End everything in it. The fork server goes when the socket does; what remains is ended by the kernel."""
        with contextlib.suppress(OSError):  # a fork of the judge's own process may hold it open, too
            self.channel.shutdown(socket.SHUT_RDWR)
        self.channel.close()
        if self.process is not None:
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):  # not reaped yet: the number is still its own
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            self.process = None
        self.errors.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None
        if self.group is not None:
            self.group.remove()
            self.group = None
        if self.user is not None:
            self.user.close()
            self.user = None


def _machine_kills() -> int:
    """Processes this machine has ended for want of memory since it started; 0 where the kernel does not say."""
    with contextlib.suppress(OSError), open("/proc/vmstat") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
