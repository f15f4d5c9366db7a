"""Code for the CPU that is compiled where it runs: decoding steps (decode.cpp) and training steps (train.cpp).

Each source is compiled once per machine, with the C++ compiler that is there; without one everything takes PyTorch's
operations, whose numbers are the same up to rounding.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from core_model.manifest import sync

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC")


def library(name: str) -> ctypes.CDLL | None:
    """The compiled `name`.cpp; None where it cannot be had, which is said once, or is not wanted (TRIVIUM_NATIVE=0)."""
    return _loaded(name)[0]


def reason_against(name: str) -> str | None:
    """Why there is none."""
    return _loaded(name)[1]


@functools.cache
def _loaded(name: str) -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("TRIVIUM_NATIVE", "1") == "0":
        return None, "TRIVIUM_NATIVE is 0"
    try:
        return _opened(name), None
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        log.warning("%s without compiled code, more slowly: %s", name, error)
        return None, str(error)


def _opened(name: str) -> ctypes.CDLL:
    path = _compiled(name)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # damaged
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(_compiled(name)))


def _compiled(name: str) -> Path:
    """The shared library, compiled unless it is there.

    Raises:
        OSError: there is no compiler, or no place to write.
        RuntimeError: it does not compile here, or there is no home.
        subprocess.TimeoutExpired: the compiler takes minutes.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))), None)
    if compiler is None:
        raise OSError("no C++ compiler (apt-get install g++)")
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=60).stdout
    source = SOURCES / f"{name}.cpp"
    texts = [path.read_bytes() for path in (source, *sorted(SOURCES.glob("*.h")))]
    what = b"|".join([*texts, " ".join(FLAGS).encode(), version, _processor()])
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trivium"
    target = folder / f"{name}-{hashlib.sha256(what).hexdigest()[:16]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # processes that compile at once do not meet
            made = Path(scratch) / target.name
            command = [compiler, *FLAGS, "-o", str(made), str(source)]
            done = subprocess.run(command, capture_output=True, timeout=300, text=True, errors="replace")
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} exits with {done.returncode}: {done.stderr.strip()[-500:]}")
            sync(made)
            made.rename(target)
    return target


def _processor() -> bytes:
    """What -march=native depends on: homes are shared by machines."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_bytes().split(b"\n\n", 1)[0].split(b"\n")
        return b"\n".join(line for line in lines if line.startswith((b"model name", b"flags", b"Features")))
    return platform.processor().encode()
