"""In the child of one job: LiveCodeBench's own way to run a program, so that its verdicts can be reproduced.

Only the manner is theirs (what a program sees, which errors end a test); the process, its limits and its sandbox are
ours, each test has a process of its own, and the comparison takes place outside. What follows from that manner, right
or wrong, is kept on purpose: stdin is an object that knows `read`, `readline` and `readlines` but cannot be iterated
over, a program is rewritten into a function, names of `os` are gone. See docs/judge.md.
"""

import ast
import builtins
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import types

import python_runner

FUNCTION = "wrapped_function"
_TAKEN = """
    kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename renames truncate
    replace unlink fchmod fchown chmod chown chroot lchflags lchmod lchown getcwd chdir
"""
TAKEN_FROM_OS = _TAKEN.split()
TAKEN_MODULES = ("ipdb", "joblib", "resource", "psutil", "tkinter")


class TimeoutException(Exception):
    """Raised in the program's own code, which may therefore catch it."""


def warm_up():
    import unittest.mock  # noqa: F401  (dear to import, and wanted by every test)


def rewrite(text):
    """A stdin program as a function: imports stay at the top, all else becomes its body; a final main guard is
    opened. A text that does not parse stays as it is, for the compiler to refuse."""
    try:
        body = ast.parse(text).body
        if body and isinstance(body[-1], ast.If) and ast.unparse(body[-1].test) == "__name__ == '__main__'":
            body = [*body[:-1], *body[-1].body]
        imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        function = ast.parse(f"def {FUNCTION}(): pass").body[0]
        function.body = [node for node in body if node not in imports]  # none: no program either, there as here
        # The official text begins with statements of its own, hence `pass`: an import from __future__ comes too late.
        lines = ["pass", *map(ast.unparse, imports), ast.unparse(function)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text
    return "\n".join(lines) + "\n"


class Buffer:
    """What `sys.stdin.buffer` is there: all at once, or the first line for ever."""

    def __init__(self, text):
        self.text = text

    def read(self, *_):
        return self.text.encode()

    def readline(self, *_):
        return self.text.encode().split(b"\n")[0] + b"\n"


class Stdin:
    """What `sys.stdin` is there: no iteration, and `read` from the start each time."""

    def __init__(self, text):
        self.text = text
        self.lines = io.StringIO(text)
        self.buffer = Buffer(text)

    def read(self, *_):
        return self.text

    def readline(self, *arguments):
        return self.lines.readline(*arguments)

    def readlines(self, *_):
        return self.text.split("\n")

    def __getattr__(self, name):
        return getattr(self.lines, name)


def take_away():
    """What the official judge takes from its own process before it runs a program."""
    builtins.quit = builtins.help = None
    builtins.exit = sys.exit
    for name in TAKEN_FROM_OS:
        setattr(os, name, None)
    shutil.rmtree = shutil.move = shutil.chown = None
    subprocess.Popen = None
    for name in TAKEN_MODULES:
        sys.modules[name] = None


class Clock:
    """The official alarm, by CPU time where theirs is by the wall's, so that a busy machine changes no verdict; by the
    wall's too, much later, for programs that sleep. A program that turns the alarm off turns this off."""

    def __init__(self, seconds, wall):
        self.seconds, self.wall = seconds, wall
        self.set_timer, self.alarm = signal.setitimer, signal.alarm
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, self.ring)

        def alarm(seconds):
            self.set_timer(signal.ITIMER_PROF, 0)
            return self.alarm(seconds)

        def set_timer(which, seconds, interval=0.0):
            self.set_timer(signal.ITIMER_PROF, 0)
            return self.set_timer(which, seconds, interval)

        signal.alarm, signal.setitimer = alarm, set_timer

    @staticmethod
    def ring(*_):
        raise TimeoutException

    def start(self):
        self.set_timer(signal.ITIMER_PROF, self.seconds)
        self.set_timer(signal.ITIMER_REAL, self.wall)

    def stop(self):
        self.set_timer(signal.ITIMER_PROF, 0)
        self.set_timer(signal.ITIMER_REAL, 0)


def described(value):
    """The value as data that compares as it would there: top-level tuples are lists, nested ones are not."""
    if type(value) is tuple:
        value = list(value)
    if type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
        return {"array": value.tolist()}

    def strict(part, depth=0):
        if isinstance(part, tuple) or depth > 200:
            raise python_runner.NotPlain
        if isinstance(part, list):
            return [strict(one, depth + 1) for one in list.__iter__(part)]
        if isinstance(part, dict):
            return {key: strict(one, depth + 1) for key, one in python_runner.plain(part).items()}
        return python_runner.plain(part)

    try:
        return {"value": strict(value)}
    except python_runner.NotPlain:
        return {"other": type(value).__name__}


def run(job, code, text):
    """Run one test and write what became of it to file 3: `{"setup": error}`, `{"error", "timeout"}`, `{"out"}` for a
    stdin program, or the value described. A program that ends its process writes nothing."""
    import unittest.mock

    take_away()
    sys.argv = ["judge", "--custom_output_file", "output.json"]
    module = types.ModuleType("tmp_sol")
    module.__dict__["__builtins__"] = builtins
    clock = Clock(job["cpu"], job["alarm"])
    try:
        clock.start()
        exec(code, module.__dict__)  # noqa: S102  (what this process is for)
        owner = module.Solution() if job["in_class"] else module
        clock.stop()
        method = getattr(owner, job["entry"] or FUNCTION)
        arguments = [json.loads(line) for line in text.split("\n")] if job["entry"] else []
    except Exception as error:
        answer({"setup": f"Error during testing: {error}"})
    printed = io.StringIO()
    mocks = unittest.mock.patch("builtins.open", unittest.mock.mock_open(read_data=text))
    try:
        clock.start()
        if job["entry"]:
            value = method(*arguments)
            clock.stop()
            reply = described(value)
        else:
            sys.stdin, sys.stdout = Stdin(text), printed
            try:
                with mocks:
                    method()
            except SystemExit:
                pass  # any status, as there
            clock.stop()
            reply = {"out": printed.getvalue()}
    except Exception as error:
        clock.stop()
        reply = {"error": repr(error)[:1000], "timeout": "timeoutexception" in repr(error).lower()}
    answer(reply)


def answer(reply):
    python_runner.write(3, json.dumps(reply).encode())
    os._exit(0)
