"""The child's side of the allow-list runner: runs programs on inputs and prints what they printed.

Started by `eval.judge.allowlist` as a file, never imported by it. It reads one JSON object from stdin,
`{"jobs": [[source, [input, ...]], ...], "cpu_seconds", "memory_bytes", "output_characters", "builtins": [...]}`, and
writes one JSON line when it is ready and one for every (program, input) pair, in order. Expected outputs never come
here. Standard library only, since the interpreter starts without site-packages.
"""

import builtins
import io
import json
import math
import os
import resource
import sys
import types

NOBODY = 65534


class OutputLimit(BaseException):
    """Not an Exception, so that a program's `except Exception` does not swallow it."""


class CappedOutput:
    """The program's stdout: keeps at most `limit` characters and remembers that it was asked for more."""

    def __init__(self, limit):
        self.parts, self.left, self.overflowed = [], limit, False

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError("write() argument must be str")
        self.left -= len(text)
        if self.left < 0:
            self.overflowed = True
            raise OutputLimit
        self.parts.append(text)
        return len(text)

    def flush(self):
        return None


def lower_privileges(memory_bytes):
    """Set the limits that last for the whole process; returns the uid the programs run under."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    if os.geteuid() == 0:
        # The kernel does not hold uid 0 to RLIMIT_NPROC; where the uid is not mapped we stay and say so.
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        except OSError as error:
            sys.stderr.write(f"cannot change uid: {error}\n")
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    return os.getuid()


def allow_cpu(seconds):
    """Let the process use `seconds` more of CPU time; the kernel kills it beyond (whole seconds, rounded up)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def fresh_globals(names, stdin, stdout):
    """Globals with the allowed builtins and an `import sys` that yields a stand-in, never the real module."""
    stand_in = types.SimpleNamespace(stdin=stdin, stdout=stdout, exit=sys.exit)

    def import_sys(name, *_):
        if name != "sys":
            raise ImportError(name)
        return stand_in

    allowed = {name: getattr(builtins, name) for name in names}
    allowed["__import__"] = import_sys
    return {"__builtins__": allowed, "__name__": "__main__"}


def run_once(program, text, names, limit):
    """Run compiled `program` on stdin `text`; returns {"out"} or {"error", "detail"}."""
    stdin, stdout = io.StringIO(text), CappedOutput(limit)
    real = sys.stdin, sys.stdout
    sys.stdin, sys.stdout = stdin, stdout
    failure = None
    try:
        exec(program, fresh_globals(names, stdin, stdout))  # noqa: S102  (allow-listed program, limited process)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            failure = ("exit", "non-zero exit status")
    except OutputLimit:
        failure = None  # reported below from stdout.overflowed, which a `finally: return` in the program cannot undo
    except MemoryError:
        failure = ("memory", "MemoryError")
    except BaseException as error:
        failure = ("exception", type(error).__name__)
    finally:
        sys.stdin, sys.stdout = real
    if stdout.overflowed:
        failure = ("output", f"more than {limit} characters")
    if failure is not None:
        return {"error": failure[0], "detail": failure[1]}
    return {"out": "".join(stdout.parts)}


def main():
    request = json.loads(sys.stdin.buffer.read())
    uid = lower_privileges(request["memory_bytes"])
    channel = sys.stdout  # the real one; programs get another

    def report(row):
        channel.write(json.dumps(row) + "\n")
        channel.flush()

    report({"uid": uid})
    for source, inputs in request["jobs"]:
        allow_cpu(request["cpu_seconds"])
        try:
            program = compile(source, "<program>", "exec")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            for _ in inputs:
                report({"error": "compile", "detail": type(error).__name__})
            continue
        reply: dict[str, str] = {}
        for text in inputs:
            if reply.get("error") not in ("memory", "output"):  # dear to find out again, and no different
                allow_cpu(request["cpu_seconds"])
                reply = run_once(program, text, request["builtins"], request["output_characters"])
            report(reply)


if __name__ == "__main__":
    main()
