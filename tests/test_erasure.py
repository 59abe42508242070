"""erasure.py: what an event says is gone wherever it was kept, its key stays, and the books are as before."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from events import store, wire
from events.audit import audit
from events.erasure import Erased, erase
from events.models import Batch, Duplicate, Erasure, Event
from events.stats import books
from tests.conftest import Publish, event
from tests.test_store import broken, pending

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]
SECRET = {"name": "Ada Lovelace"}


def secret(event_id: str = "1", **fields: object) -> dict[str, object]:
    return event(event_id, payload=SECRET, **fields)


def everything_kept() -> str:
    """All that the database says of payloads."""
    bodies = [bytes(body).decode() for body in Batch.objects.exclude(body=None).values_list("body", flat=True)]
    payloads = [*Event.objects.values_list("payload", flat=True), *Duplicate.objects.values_list("payload", flat=True)]
    return "\n".join([*bodies, *payloads])


def test_a_stored_event_and_its_duplicates_are_erased(publish: Publish, drain: Drain) -> None:
    publish([secret(), event("2", payload={"kept": 1})])
    publish([event("1", payload={"name": "Augusta Ada"})])
    drain()
    before = books()
    assert erase("t", "1", by="me") == Erased(stored=True, duplicates=1)
    assert "Ada" not in everything_kept()
    assert Event.objects.get(event_id="1").payload == "{}"
    assert Event.objects.get(event_id="2").payload == '{"kept": 1}'
    assert books() == before
    assert all(finding.holds for finding in audit())


@pytest.mark.parametrize("status", [Batch.Status.PENDING, Batch.Status.FAILED, Batch.Status.DISCARDED])
def test_a_batch_that_waits_is_erased(status: Batch.Status, drain: Drain) -> None:
    batch = pending(secret(), event("2", payload={"kept": 1}), status=status)
    assert erase("t", "1", by="me") == Erased(batches=1)
    assert "Ada" not in everything_kept()
    Batch.objects.update(status=Batch.Status.PENDING)
    drain()
    assert dict(Event.objects.values_list("event_id", "payload")) == {"1": "{}", "2": '{"kept": 1}'}
    batch.refresh_from_db()
    assert (batch.unique, batch.duplicates) == (2, 0)


def test_only_the_event_of_that_topic_is_erased() -> None:
    pending(secret(), secret(topic="other"))
    erase("t", "1", by="me")
    assert [(kept.topic, bytes(kept.payload)) for kept in wire.decode_kept(bytes(Batch.objects.get().body or b""))] == [
        ("t", b"{}"),
        ("other", b'{"name": "Ada Lovelace"}'),
    ]


def test_a_retry_is_a_duplicate_and_brings_nothing_back(publish: Publish, drain: Drain) -> None:
    publish([secret()])
    drain()
    erase("t", "1", by="me")
    publish([secret()])
    assert drain().duplicates == 1
    assert "Ada" not in everything_kept()
    assert all(finding.holds for finding in audit())


def test_what_a_drain_read_before_is_not_stored_after(publish: Publish) -> None:
    """On SQLite a drain reads bodies before it takes the lock; on PostgreSQL it holds the batch, and erase() waits."""
    publish([secret()])
    batches, _ = store._claim()
    chunk = store._read(batches)
    erase("t", "1", by="me")
    store._store(store._still_due(chunk))
    assert "Ada" not in everything_kept()


def test_who_and_when_is_kept_once(publish: Publish, drain: Drain) -> None:
    publish([secret()])
    drain()
    erase("t", "1", by="the first")
    erased_at = Erasure.objects.get().erased_at
    assert erase("t", "1", by="the second").stored
    assert [(row.erased_by, row.erased_at) for row in Erasure.objects.all()] == [("the first", erased_at)]


def test_of_an_unknown_key_nothing_is_noted() -> None:
    assert not erase("t", "1", by="me").found
    assert not Erasure.objects.exists()


def test_a_batch_that_cannot_be_read_is_named() -> None:
    batch = broken(body=b'[{"topic":"t","event_id":"1"', status=Batch.Status.FAILED)
    assert erase("t", "1", by="me").unreadable == [batch.pk]


def test_audit_finds_an_erased_event_that_says_something(publish: Publish, drain: Drain) -> None:
    publish([secret()])
    drain()
    erase("t", "1", by="me")
    Event.objects.update(payload='{"name": "Ada"}')
    [failed] = [finding for finding in audit() if not finding.holds]
    assert failed.claim == "erased events of which something is kept"


IN_A_FILE = """
from django.core.management import call_command
from events import inbox, store, wire
from events.erasure import erase
call_command("migrate", verbosity=0)
body = b'[{"topic":"t","event_id":"1","source":"s","payload":{"a":"%s"}}]' % (b"Q7" * 5000)
inbox.accept(wire.decode(body, max_events=1))
store.store_chunk()
inbox.accept(wire.decode(body, max_events=1))
assert erase("t", "1", by="me").batches == 1
"""


def test_nothing_is_left_in_the_files(tmp_path: Path) -> None:
    """SQLite keeps what is deleted in free pages, and what was written in its write-ahead log."""
    environment = {**os.environ, "DATA_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "aggregator_project.settings"}
    subprocess.run(
        [sys.executable, "-c", f"import django\ndjango.setup()\n{IN_A_FILE}"],
        env=environment | {"DATABASE_URL": "", "CELERY_BROKER_URL": "", "CACHE_URL": "locmem://"},
        cwd=settings.BASE_DIR,
        check=True,
    )
    assert (tmp_path / "aggregator.sqlite3").exists()
    assert not [file for file in tmp_path.glob("aggregator.sqlite3*") if b"Q7Q7Q7" in file.read_bytes()]


def test_the_command_says_what_was_erased(publish: Publish, drain: Drain, capsys: pytest.CaptureFixture[str]) -> None:
    publish([secret()])
    drain()
    call_command("erase", topic="t", event_id="1")
    assert capsys.readouterr().out == (
        "Erased the payload of the stored event. The key stays, and backups are yours to erase.\n"
    )
    assert Erasure.objects.get().erased_by.startswith("manage.py erase (")
    with pytest.raises(CommandError, match="no such event"):
        call_command("erase", topic="t", event_id="2")
