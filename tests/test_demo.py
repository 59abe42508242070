"""`manage.py demo`, as `make demo` runs it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from django.conf import settings

pytestmark = pytest.mark.xdist_group("stack")

#: Seconds after which what is waited for is taken to never come.
PATIENCE = 60


def demo(temporary: Path, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(settings.BASE_DIR / "manage.py"), "demo"],
        env=os.environ
        | {"TMPDIR": str(temporary), "DJANGO_SETTINGS_MODULE": "aggregator_project.settings"}
        | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_it_proves_its_numbers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.sqlite3"
    process = demo(tmp_path, DATABASE_URL=f"sqlite:///{elsewhere}", CELERY_BROKER_URL="redis://127.0.0.1:1")
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    rows = ["".join(line.split()) for line in output.splitlines()]
    assert "│received│5,000│5,000│ok│" in rows
    assert "│unique│4,000│4,000│ok│" in rows
    assert "│droppedasduplicates│1,000│1,000│ok│" in rows
    assert "The books are right" in output
    assert output.splitlines()[-1] == "Now run it yourself: make up"
    assert not elsewhere.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(tmp_path: Path, ending: signal.Signals) -> None:
    process = demo(tmp_path)
    deadline = time.monotonic() + PATIENCE
    # The supervisor and its parts are there.
    while len(found := psutil.Process(process.pid).children(recursive=True)) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(ending)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert not any(child.is_running() for child in found)
    assert list(tmp_path.iterdir()) == []
