"""Nothing gets through at the full level, and what the suite does stays in the sandbox around it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import suite
from attacks import ATTACKS

SHARED = [Path("/tmp"), Path("/dev/shm"), Path("/var/tmp"), Path("/run")]
# At the lower levels a part of the table is enough here; `make soak` compares all of it.
SOME = (
    "read the answers' file",
    "write into /tmp",
    "an abstract socket",
    "200 processes",
    "three times 160 MB",
    "the server's memory",
    "kill the server",
    "shared memory of System V",
    "the server's limits",
)


@pytest.fixture(autouse=True)
def _needs_bubblewrap() -> None:
    assert shutil.which("bwrap"), "install bubblewrap (make setup does where it may): the judge's sandbox needs it"


def test_there_are_attacks_of_every_sort() -> None:
    assert len(ATTACKS) >= 100 and len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert len({attack.sort for attack in ATTACKS}) >= 8


@pytest.mark.parametrize("level", suite.FULL)
def test_nothing_succeeds_at_the_full_level(level: str, repository: Path) -> None:
    setting = next(one for one in suite.SETTINGS if one.name == level)
    found = suite.attack_all([setting])
    assert {name: evidence for name, evidence in found[level].items() if evidence} == {}
    assert len(found[level]) == len(ATTACKS)
    page = (repository / "docs" / "attacks.md").read_text()
    assert suite.differences(found, page) == []


def test_the_lower_levels_are_as_the_page_says(repository: Path) -> None:
    """Attacks that succeed somewhere: so the suite can tell success from failure."""
    lower = [one for one in suite.SETTINGS if one.name not in suite.FULL]
    found = suite.attack_all(lower, SOME)
    assert suite.differences(found, (repository / "docs" / "attacks.md").read_text()) == []
    for name in SOME:
        if name != "the server's memory":  # out of reach everywhere
            assert any(found[one.name][name] for one in lower), name


def test_the_page_has_every_attack(repository: Path) -> None:
    said = suite.read_table((repository / "docs" / "attacks.md").read_text())
    assert list(said) == [one.name for one in suite.SETTINGS]
    for setting, attacks in said.items():
        assert list(attacks) == [attack.name for attack in ATTACKS], setting
    assert not any(said["6"].values()) and any(said["4"].values())


def test_the_machines_own_folders_stay_untouched() -> None:
    """Canaries written inside the outer sandbox are there for what runs inside, and nowhere else."""
    name = f"canary-{os.getpid()}"
    program = (
        "import pathlib\n"
        f"for folder in {[str(folder) for folder in SHARED]}:\n"
        f"    path = pathlib.Path(folder) / '{name}'\n"
        "    path.write_text('x')\n"
        "    assert path.read_text() == 'x'\n"
        "    print(folder)\n"
    )
    done = subprocess.run([*suite.outer_command(), sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == [str(folder) for folder in SHARED], done.stderr
    assert not [folder for folder in SHARED if (folder / name).exists()]
    # And it sees nothing of the machine's: an empty /tmp, no process but its own, nowhere else to write.
    write = [*suite.outer_command(), sys.executable, "-c", "open('/usr/canary', 'w')"]
    seen = subprocess.run(write, capture_output=True, text=True)
    assert "Read-only file system" in seen.stderr
    look = "import os; print(sorted(os.listdir('/tmp')), len([p for p in os.listdir('/proc') if p.isdigit()]) < 4)"
    seen = subprocess.run([*suite.outer_command(), sys.executable, "-c", look], capture_output=True, text=True)
    inside = [path.relative_to("/tmp").parts[0] for path in suite.NEEDED if path.is_relative_to("/tmp")]
    assert seen.stdout == f"{sorted(set(inside))} True\n", seen.stderr


def test_an_attack_leaves_the_machines_folders_as_they_were() -> None:
    before = {folder: {path.name for path in folder.iterdir()} for folder in SHARED if os.access(folder, os.R_OK)}
    found = suite.attack_all(
        [one for one in suite.SETTINGS if one.name == "2"], ["write into /tmp", "write into /dev/shm"]
    )
    assert all(found["2"].values())  # it did get through, to the outer sandbox's folders
    for folder, names in before.items():
        new = {path.name for path in folder.iterdir()} - names
        assert not [name for name in new if name.startswith(("canary", "state", "suite", "lcb_oracle"))]
