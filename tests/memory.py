"""The most memory that a process may take, and how tests measure it."""

import re
from pathlib import Path

import pytest

#: Megabytes that docs/operations.md promises, under Limits, for a process of each kind.
WEB_MB = 400
WORKER_MB = 300

#: For tests that need Linux' account of a process.
measured = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads it in /proc")


def peak_mb(status: str) -> int:
    """The most memory in megabytes that a process had since it began, from its /proc/PID/status."""
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) // 1000


def peak_mb_of(pid: int) -> int:
    """The same of a process that runs."""
    return peak_mb(Path(f"/proc/{pid}/status").read_text())
