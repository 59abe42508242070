"""Killed at each step inside accept and inside store: before and after every statement, commit, turn and ring."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.faults.service import PROJECT

#: A killed process leaves the same in memory as on a disk, and hundreds of fsync(2) cost nothing there.
IN_MEMORY = {"TMPDIR": "/dev/shm"} if os.access("/dev/shm", os.W_OK) else {}


def killed_at_every_step(work: str) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults.steps", work],
        cwd=PROJECT,
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings"} | IN_MEMORY,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout)
    return report


@pytest.mark.parametrize(
    ("work", "moments"),
    [
        ("accept", ["flock", "ring", 'INSERT INTO "events_batch"', 'SELECT "events_batch"."id"']),
        ("store", ["flock", "_commit", 'INSERT INTO "events_event"', 'UPDATE "events_batch"']),
    ],
)
def test_killed_at_any_step_nothing_is_lost_doubled_or_half_written(work: str, moments: list[str]) -> None:
    report = killed_at_every_step(work)
    assert report["problems"] == []
    assert report["survived"]
    for moment in moments:
        for side in ("before", "after"):
            assert any(step.startswith(f"{side} {moment}") for step in report["steps"]), report["steps"]
