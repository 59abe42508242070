"""A database that cannot be written or read: a clear answer, nothing half written, and no restart once it can be."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.service import PROJECT, environment, free_ports, manage

# Runs in a process and a mount namespace of its own, on a small disk that is the folder of the database.
_ON_A_SMALL_DISK = """
import json, os, subprocess, sys
import django
disk = os.environ["DATA_DIR"]

def mount(*options, folder=disk):
    subprocess.run(["mount", *options, folder], check=True)

mount("-t", "tmpfs", "-o", "size=8m", "tmpfs")
PREPARE
django.setup()
from django.core.management import call_command
from django.test import Client
from events.audit import audit
from events.models import Batch, Event
from events.store import drain

call_command("migrate", verbosity=0)
client = Client(headers={"host": "localhost"})
answers = []

def publish(event_id, size=10):
    event = {"topic": "t", "event_id": event_id, "source": "s", "payload": {"text": "x" * size}}
    answer = client.post("/publish", json.dumps(event), content_type="application/json")
    answers.append([event_id, answer.status_code, answer.headers.get("Retry-After"), answer.json()])
    return answer.status_code

def drained():
    try:
        drain()
    except Exception as error:
        return type(error).__name__
    return "done"

publish("before")
drained()
BREAK
publish("meanwhile")
meanwhile = drained()
MEND
publish("after")
after = drained()
print(json.dumps({
    "answers": answers, "meanwhile": meanwhile, "after": after,
    "broken": [finding.claim for finding in audit() if not finding.holds],
    "attempts": Batch.objects.exclude(attempts=0).count(),
    "unprocessed": Batch.objects.exclude(status="processed").count(),
    "events": sorted(Event.objects.values_list("event_id", flat=True)),
}))
"""

_FULL = """
publish("left pending")
with open(f"{disk}/filler", "wb", buffering=0) as filler:
    try:
        while filler.write(b"x" * 4096):
            pass
    except OSError:
        pass
number = 0
while publish(f"filling {number}", size=3000) == 202:
    number += 1
"""
# The counts for Prometheus stay open for writing.
_OPEN_FILES_ELSEWHERE = """
os.mkdir(f"{disk}/run")
mount("-t", "tmpfs", "tmpfs", folder=f"{disk}/run")
"""
_READ_ONLY = """
from django.db import connections
# A disk with files open for writing is not remounted.
connections.close_all()
mount("-o", "remount,ro")
"""
_WRITABLE = """
mount("-o", "remount,rw")
"""


def _may_mount() -> bool:
    tried = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        check=False,
    )
    return tried.returncode == 0


@pytest.fixture(scope="module")
def on_a_small_disk() -> Callable[..., dict[str, Any]]:
    try:
        allowed = _may_mount()
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this machine does not let its users mount a small disk of their own (unshare --mount)")

    def run(folder: Path, *, breaking: str, mending: str, prepare: str = "") -> dict[str, Any]:
        script = _ON_A_SMALL_DISK.replace("BREAK", breaking).replace("MEND", mending).replace("PREPARE", prepare)
        ended = subprocess.run(
            ["unshare", "--mount", "--map-root-user", sys.executable, "-c", script],
            cwd=PROJECT,
            env=environment(folder, SECRET_KEY="x", CACHE_URL="locmem://", CELERY_BROKER_URL="redis://127.0.0.1:1/"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        found: dict[str, Any] = json.loads(ended.stdout)
        return found

    return run


def all_is_well_again(found: dict[str, Any]) -> None:
    """Each publish was accepted and is stored, or was refused with a 503 and is not; and no attempt was counted."""
    accepted = []
    for event_id, status, retry_after, answer in found["answers"]:
        if status == 202:
            accepted.append(event_id)
        else:
            assert status == 503
            assert int(retry_after) > 0
            assert "nothing was accepted" in answer["detail"]
    assert {"before", "after"} <= set(accepted)
    assert found["events"] == sorted(accepted)
    assert found["broken"] == []
    assert found["attempts"] == found["unprocessed"] == 0
    assert found["after"] == "done"


def test_a_full_disk_is_a_503_until_there_is_room(on_a_small_disk: Any, tmp_path: Path) -> None:
    found = on_a_small_disk(tmp_path, breaking=_FULL, mending='os.unlink(f"{disk}/filler")')
    assert {row[0]: row[1] for row in found["answers"]}["meanwhile"] == 503
    assert found["meanwhile"] == "OperationalError"
    all_is_well_again(found)


def test_a_disk_that_turns_read_only_is_a_503_until_it_can_be_written(on_a_small_disk: Any, tmp_path: Path) -> None:
    found = on_a_small_disk(tmp_path, breaking=_READ_ONLY, mending=_WRITABLE, prepare=_OPEN_FILES_ELSEWHERE)
    assert {row[0]: row[1] for row in found["answers"]}["meanwhile"] == 503
    all_is_well_again(found)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    yield folder
    folder.chmod(0o755)


def test_it_does_not_start_in_a_folder_it_may_not_write(read_only: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("the superuser may write everywhere")
    ended = manage(read_only, "up")
    assert ended.returncode != 0
    assert len(ended.stderr.splitlines()) == 1
    assert str(read_only) in ended.stderr


def test_it_does_not_start_on_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "aggregator.sqlite3"
    file.write_bytes(b"my diary, volume two\n" * 500)
    ended = manage(tmp_path, "up", PORT=str(free_ports(1)[0]), NO_FLOWER="true")
    assert ended.returncode != 0
    assert ended.stderr.splitlines() == [f"CommandError: The database {file} cannot be used: file is not a database"]
    assert file.read_bytes().startswith(b"my diary")


# Runs as above: fills the disk of an installation, and prints what each command and part of the service came to there.
_COMMANDS_ON_A_FULL_DISK = """
import json, os, subprocess, sys
disk = os.environ["DATA_DIR"]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)

def run(*words):
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=100)
    return done.returncode, done.stderr

assert run("manage.py", "migrate", "-v0")[0] == 0
subprocess.run(["rm", "-r", disk + "/run"], check=True)
with open(f"{disk}/filler", "wb", buffering=0) as filler:
    try:
        while filler.write(b"x" * 4096):
            pass
    except OSError:
        pass
count = "from events import metrics; metrics.RING_SENT.inc(); metrics.DRAIN_SECONDS.observe(1)"
commands = [
    ["audit"], ["prune"], ["backup", disk + "/copy"], ["apikey", "list"], ["apikey", "create", "x", "read"],
    ["replay", "--all"], ["shell", "-v0", "-c", count],
]
print(json.dumps([[" ".join(words), *run("manage.py", *words)] for words in commands]))
"""


@pytest.mark.timeout(240)
def test_commands_on_a_full_disk_say_so_in_a_line(
    on_a_small_disk: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    ended = subprocess.run(
        ["unshare", "--mount", "--map-root-user", sys.executable, "-c", _COMMANDS_ON_A_FULL_DISK],
        cwd=PROJECT,
        env=environment(tmp_path, SECRET_KEY="x", CACHE_URL="locmem://", CELERY_BROKER_URL="redis://127.0.0.1:1/"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    outcomes = json.loads(ended.stdout)
    *others, counting = outcomes
    for command, code, said in others:
        # Not by SIGBUS, which is a negative one.
        assert (command, code) == (command, 1), said
        assert "Traceback" not in said
        assert "disk" in said.splitlines()[-1]
    assert counting[1] == 0, counting[2]
    assert "No space left on device" in counting[2]
