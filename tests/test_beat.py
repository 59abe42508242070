"""beat.py: beat sends a drain only while something is due, and says that it is there either way."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery.worker import state as worker_state
from django.utils import timezone

from aggregator_project import beat, worker
from aggregator_project.celery import app
from events import inbox, retention, state
from events.models import Batch, Heartbeat
from tests.conftest import event
from tests.test_store import pending

pytestmark = pytest.mark.django_db


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> beat.Scheduler:
    # A test's transaction ends with its connection.
    monkeypatch.setattr(beat.connection, "close", lambda: None)
    state._silent_until.clear()
    return beat.Scheduler(app, schedule_filename=str(tmp_path / "schedule"))


def due(scheduler: beat.Scheduler, task: str) -> bool:
    [entry] = [entry for entry in scheduler.schedule.values() if entry.task == task]
    entry.last_run_at = timezone.now().replace(year=2020)
    return bool(scheduler.is_due(entry).is_due)


def test_an_empty_inbox_is_not_drained(scheduler: beat.Scheduler) -> None:
    assert not due(scheduler, inbox.PROCESS_INBOX)


def test_an_inbox_with_something_due_is_drained(scheduler: beat.Scheduler) -> None:
    pending(event())
    assert due(scheduler, inbox.PROCESS_INBOX)


def test_a_dead_letter_is_not_drained(scheduler: beat.Scheduler) -> None:
    pending(event(), status=Batch.Status.FAILED)
    assert not due(scheduler, inbox.PROCESS_INBOX)


def test_beat_looks_again_as_soon_as_it_would_have_sent(scheduler: beat.Scheduler) -> None:
    [entry] = [entry for entry in scheduler.schedule.values() if entry.task == inbox.PROCESS_INBOX]
    entry.last_run_at = timezone.now().replace(year=2020)
    assert scheduler.is_due(entry).next == entry.schedule.seconds


def test_an_inbox_that_cannot_be_read_is_left_to_the_worker(
    scheduler: beat.Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "anything_due", away)
    assert due(scheduler, inbox.PROCESS_INBOX)


def away() -> bool:
    raise OSError("away")


def test_retention_is_sent_whatever_the_inbox_holds(scheduler: beat.Scheduler) -> None:
    assert due(scheduler, retention.PRUNE)


def test_beat_says_that_it_is_there_although_it_sends_nothing(
    scheduler: beat.Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beat.beat.PersistentScheduler, "tick", lambda *_: 1.0)
    assert scheduler.tick() == 1.0
    assert Heartbeat.objects.get().part == "beat"


# --- A beat that runs inside the worker -------------------------------------------------------------------------------


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The signals that the worker sends itself."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(worker.os, "kill", lambda *call: sent.append(call))
    return sent


def watch() -> None:
    worker.BeatWatch._look(SimpleNamespace(), SimpleNamespace(beat=SimpleNamespace(is_alive=lambda: False)))


def test_a_worker_whose_beat_died_ends(killed: list[tuple[int, int]]) -> None:
    watch()
    assert killed == [(os.getpid(), signal.SIGTERM)]


@pytest.mark.parametrize("how", ["should_stop", "should_terminate"])
def test_a_worker_that_stops_does_not_call_its_beat_dead(
    how: str, killed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # os.EX_OK, as Celery sets it; it is 0.
    monkeypatch.setattr(worker_state, how, os.EX_OK)
    watch()
    assert (killed, caplog.text) == ([], "")
