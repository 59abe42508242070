"""A worker stays below its limit of memory, whatever is published at the default limits."""

import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from events import wire
from events.models import Batch, Duplicate, Event
from tests.memory import WORKER_MB, measured, peak_mb
from tests.test_in_flight import environment
from tests.test_store import stored_as_published

pytestmark = [pytest.mark.django_db(transaction=True), measured]

#: Runs the worker's task until nothing is due, and says how much memory that took at most.
_WORKER = """
import django
django.setup()
import aggregator_project.celery
from events import tasks
while tasks.process_inbox() != "nothing was due":
    pass
print(open("/proc/self/status").read())
"""

ROOM = settings.PUBLISH_MAX_BYTES - 200


def payload(unit: str, size: int = ROOM, *, end: str = "") -> bytes:
    """A payload of about so many bytes, full of the unit."""
    text = unit.encode()
    return b'{"a":"' + text * ((size - 30) // len(text)) + end.encode() + b'"}'


def lists(size: int = ROOM, *, name: str = "a") -> bytes:
    """A payload that is 22 times as large as objects of Python."""
    return b'{"%b":[' % name.encode() + b"[]," * (size // 3 - 20) + b"[]]}"


def publish(*payloads: bytes, first: int = 0) -> None:
    events = [
        wire.Event(topic="t", event_id=str(first + number), source="s", payload=wire.Raw(one))
        for number, one in enumerate(payloads)
    ]
    stored_as_published(wire.encode(events), len(events))


def peak(folder: Path) -> int:
    """The most memory in MB that a worker takes to store what is pending."""
    ended = subprocess.run(
        [sys.executable, "-c", _WORKER],
        cwd=settings.BASE_DIR,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert not Batch.objects.exclude(status="processed").exists()
    return peak_mb(ended.stdout)


@pytest.mark.parametrize(
    "payloads",
    [
        [payload('\\"')],
        # One such character, and Python keeps four bytes for each of the others.
        [payload("\\\\", end="\N{GRINNING FACE}")],
        [lists()],
        [payload('\\"', 1000) for _ in range(settings.PUBLISH_MAX_EVENTS)],
    ],
    ids=["escapes", "emoji", "lists", "many"],
)
def test_large_publishes(payloads: list[bytes], tmp_path: Path) -> None:
    publish(*payloads)
    publish(*payloads)
    assert peak(tmp_path) < WORKER_MB


def test_a_full_inbox_of_large_publishes(tmp_path: Path) -> None:
    for number in range(5):
        publish(payload("x"), first=number)
    assert peak(tmp_path) < WORKER_MB


def test_a_small_publish_of_the_keys_of_large_events(tmp_path: Path) -> None:
    now = timezone.now()
    for number in range(25):
        Event.objects.create(
            topic="t",
            event_id=str(number),
            source="s",
            payload=payload("x").decode(),
            timestamp=now,
            received_at=now,
            batch_id=0,
        )
    publish(*[b"{}"] * 25)
    assert peak(tmp_path) < WORKER_MB
    assert Duplicate.objects.filter(payload_differs=True).count() == 25


def test_a_publish_that_differs_in_a_letter_from_a_large_event(tmp_path: Path) -> None:
    publish(lists(name="a"))
    publish(lists(name="b"))
    assert peak(tmp_path) < WORKER_MB
    assert Duplicate.objects.get().payload_differs
