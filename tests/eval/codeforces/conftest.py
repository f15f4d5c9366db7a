"""Files for the Codeforces command, in a folder of the test's own."""

from __future__ import annotations

import pytest
from contest_work import Work


@pytest.fixture
def work(tmp_path) -> Work:
    return Work(tmp_path)
