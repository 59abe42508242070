"""A batch that kills the worker is found and becomes a dead letter; the others are stored, however often it dies."""

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from django.db import connection
from django.utils import timezone

from events import in_flight, store
from events.audit import audit
from events.models import Batch, Event
from tests.conftest import event
from tests.test_store import pending

# Other processes see what is committed.
pytestmark = pytest.mark.django_db(transaction=True)

#: Drains what is due in a process that is killed, as if out of memory, when it is to store an event of that topic.
_DRAIN = """
import os, signal, sys
import django
django.setup()
from events import store, wire
decode = wire.decode_kept

def decode_or_die(body):
    if b'"kills"' in body and sys.argv[1:]:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(body)

wire.decode_kept = decode_or_die
store.drain()
"""


def database_url() -> str:
    """The test's own database, for other processes."""
    given = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{given['NAME']}"
    return f"postgres://{given['USER']}:{given['PASSWORD']}@{given['HOST']}:{given['PORT'] or 5432}/{given['NAME']}"


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "DJANGO_SETTINGS_MODULE": "aggregator_project.settings",
        "DATA_DIR": str(folder),
        "DATABASE_URL": database_url(),
        "CELERY_BROKER_URL": "amqp://127.0.0.1:1",
        "INBOX_MAX_ATTEMPTS": "3",
        "PART": "worker",
    }


def drained(folder: Path, *, deadly: bool = True) -> bool:
    """Drains in a process of its own; whether that survived."""
    ended = subprocess.run(
        [sys.executable, "-c", _DRAIN, *(["deadly"] if deadly else [])],
        cwd=configured.BASE_DIR,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    return ended.returncode == 0


def deadly() -> Batch:
    return pending(event("1", topic="kills"))


def pause_is_over(batch: Batch, *, in_seconds: float = 0) -> None:
    Batch.objects.filter(pk=batch.pk).update(next_attempt_at=timezone.now() + timedelta(seconds=in_seconds))


def states() -> list[tuple[str, int]]:
    return list(Batch.objects.order_by("pk").values_list("status", "attempts"))


def test_a_batch_that_kills_the_worker_becomes_a_dead_letter_and_the_others_are_stored(tmp_path: Path) -> None:
    pending(event("1"))
    batch = deadly()
    pending(event("2"))
    assert not drained(tmp_path)
    assert states() == [("pending", 0)] * 3, "nobody knows yet which of them it was"
    assert not drained(tmp_path)
    assert states() == [("processed", 0), ("pending", 0), ("pending", 0)], "the first was stored by itself"
    assert drained(tmp_path)
    assert states() == [("processed", 0), ("pending", 1), ("processed", 0)]
    for _ in range(2):
        pause_is_over(batch)
        assert not drained(tmp_path)
        assert drained(tmp_path)
    batch.refresh_from_db()
    assert (batch.status, batch.attempts, batch.error) == ("failed", 3, store.WORKER_DIED)
    assert bytes(batch.body or b"").startswith(b"[{")
    assert sorted(Event.objects.values_list("event_id", flat=True)) == ["1", "2"]
    assert all(finding.holds for finding in audit())


def test_a_death_in_a_chunk_counts_against_nobody_however_often_it_comes(tmp_path: Path) -> None:
    """Five processes die, one after the other, each with the same batches in its chunk."""
    batches = [pending(event(str(number))) for number in range(3)]
    died_with(tmp_path, *([batch.pk for batch in batches] for _ in range(5)))
    assert drained(tmp_path)
    assert states() == [("processed", 0)] * 3


def test_a_death_is_counted_once(tmp_path: Path) -> None:
    batch = deadly()
    for _ in range(2):
        drained(tmp_path)
    assert drained(tmp_path)
    pause_is_over(batch, in_seconds=200)
    assert drained(tmp_path)
    assert states() == [("pending", 1)]
    pause_is_over(batch)
    assert drained(tmp_path, deadly=False)
    batch.refresh_from_db()
    assert (batch.status, batch.error) == ("processed", "")


def died_with(folder: Path, *batches: list[int]) -> None:
    """What processes leave that die while they are storing these."""
    notes = folder / "run" / "in-flight"
    notes.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(batches):
        (notes / f"died-{number}").write_text(json.dumps([one, False]))


@pytest.fixture
def notes(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the notes are; this process has none yet."""
    settings.DATA_DIR = tmp_path
    for name, value in (("process", 0), ("descriptor", -1), ("length", 0), ("complained", False)):
        monkeypatch.setattr(in_flight._File, name, value)
    return in_flight.folder()


def test_a_process_that_lives_is_not_succeeded(notes: Path) -> None:
    in_flight.note([1, 2])
    assert [path.read_text() for path in notes.iterdir()] == ["[[1, 2], false]"]
    assert list(in_flight.left_by_the_dead()) == []


def test_a_shorter_note_leaves_nothing_of_a_longer_one(notes: Path) -> None:
    in_flight.note(range(100))
    in_flight.note([1], alone=True)
    [path] = notes.iterdir()
    assert json.loads(path.read_text()) == [[1], True]


def test_the_dead_are_succeeded_once_and_suspects_come_first(notes: Path) -> None:
    notes.mkdir(parents=True)
    (notes / "a").write_text("[[1, 2], false]")
    (notes / "b").write_text("[[3], true]   ")
    (notes / "c").write_text("")
    left = list(in_flight.left_by_the_dead())
    assert left[0] == in_flight.Note([3], alone=True)
    assert in_flight.Note([1, 2], alone=False) in left
    assert list(in_flight.left_by_the_dead()) == []


def test_who_dies_while_succeeding_is_succeeded_with_all_that_is_left(notes: Path) -> None:
    notes.mkdir(parents=True)
    (notes / "a").write_text("[[1, 2], false]")
    for _ in in_flight.left_by_the_dead():
        break
    assert list(in_flight.left_by_the_dead()) == [in_flight.Note([1, 2], alone=False)]


def test_after_a_chunk_nothing_is_in_flight(notes: Path) -> None:
    pending(event("1"))
    store.drain()
    [path] = notes.iterdir()
    assert json.loads(path.read_text()) == [[], False]


def test_a_folder_that_cannot_be_written_stops_no_drain(
    notes: Path, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.DATA_DIR = notes / "no folder"
    notes.parent.mkdir()
    notes.write_text("a file")
    for number in range(2):
        pending(event(str(number)))
        store.drain()
    assert Event.objects.count() == 2
    assert caplog.text.count("cannot be noted") == 1
