"""audit.py: recounts the rows and finds every way in which the books could be wrong."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.models import F
from django.utils import timezone

from events import store
from events.audit import audit
from events.models import Batch, Event, TopicTotal
from tests.conftest import Publish, event


def wrong() -> set[str]:
    return {finding.claim for finding in audit() if not finding.holds}


@pytest.fixture
def busy(db: None, publish: Publish, drain: Callable[[], store.Stored]) -> None:
    """Batches in every state."""
    publish([event("1"), event("2"), event("1")])
    publish([event("1", "other")])
    drain()
    publish(event("3"))
    now = timezone.now()
    common = {"accepted_at": now, "next_attempt_at": now, "size": 1}
    Batch.objects.create(received=4, status="failed", body=b"?", **common)
    Batch.objects.create(received=5, status="discarded", **common)


@pytest.mark.django_db
def test_the_books_of_an_empty_service_hold() -> None:
    assert wrong() == set()


@pytest.mark.usefixtures("busy")
def test_the_books_of_a_busy_service_hold() -> None:
    assert wrong() == set()


@pytest.mark.usefixtures("busy")
def test_both_sides_of_each_claim_are_shown() -> None:
    sides = {finding.claim: (finding.left, finding.right) for finding in audit()}
    assert sides["received = events of all batches"] == (14, 14)
    assert sides["unique = stored events"] == (3, 3)


PROCESSED = {"status": "processed"}
WRONGS: dict[str, tuple[Callable[[], Any], str]] = {
    "an event was lost": (lambda: Event.objects.filter(event_id="2").delete(), "unique = stored events"),
    "an event came from nowhere": (
        lambda: Event.objects.create(
            topic="t", event_id="9", source="s", timestamp=timezone.now(), received_at=timezone.now(), batch_id=1
        ),
        "unique = stored events",
    ),
    "a unique event was not counted": (
        lambda: TopicTotal.objects.filter(topic="t").update(unique=F("unique") - 1),
        "received = events of all batches",
    ),
    "a duplicate was counted twice": (
        lambda: TopicTotal.objects.filter(topic="t").update(duplicates=F("duplicates") + 1),
        "duplicates = dropped events of processed batches",
    ),
    "a duplicate was counted as unique": (
        lambda: TopicTotal.objects.filter(topic="t").update(unique=F("unique") + 1, duplicates=F("duplicates") - 1),
        "unique = new events of processed batches",
    ),
    "an event was counted for another topic": (
        lambda: [
            TopicTotal.objects.filter(topic="t").update(unique=F("unique") - 1),
            TopicTotal.objects.filter(topic="other").update(unique=F("unique") + 1),
        ],
        "topics whose total differs from their events",
    ),
    "a batch was lost": (
        lambda: Batch.objects.filter(**PROCESSED, received=3).delete(),
        "received = events of all batches",
    ),
    "a receipt does not add up": (
        lambda: Batch.objects.filter(**PROCESSED, received=3).update(received=4),
        "processed batches whose receipt does not add up",
    ),
    "a pending batch lost its body": (
        lambda: Batch.objects.filter(status="pending").update(body=None),
        "batches whose body or date does not fit their status",
    ),
    "a dead letter lost its body": (
        lambda: Batch.objects.filter(status="failed").update(body=None),
        "batches whose body or date does not fit their status",
    ),
    "a processed batch kept its body": (
        lambda: Batch.objects.filter(**PROCESSED, received=3).update(body=b"[]"),
        "batches whose body or date does not fit their status",
    ),
    "a processed batch has no date": (
        lambda: Batch.objects.filter(**PROCESSED, received=3).update(processed_at=None),
        "batches whose body or date does not fit their status",
    ),
    "a pending batch has a date": (
        lambda: Batch.objects.filter(status="pending").update(processed_at=timezone.now()),
        "batches whose body or date does not fit their status",
    ),
}


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("what", WRONGS)
def test_the_audit_finds_that(what: str) -> None:
    happens, claim = WRONGS[what]
    happens()
    assert claim in wrong()


def elsewhere(call: Callable[[], Any]) -> Any:
    """Runs it in another thread, on a connection of its own."""

    def run() -> Any:
        try:
            return call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(run).result()


@pytest.mark.django_db(transaction=True)
def test_the_audit_sees_one_snapshot_whatever_is_stored_meanwhile(publish: Publish) -> None:
    publish([event("1"), event("2")])
    steps = 0

    def store_meanwhile(execute: Any, sql: str, *rest: Any) -> Any:
        nonlocal steps
        steps += 1
        result = execute(sql, *rest)
        if steps == 2:
            elsewhere(store.store_chunk)
        return result

    with connection.execute_wrapper(store_meanwhile):
        assert wrong() == set()
    assert Event.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_the_audit_does_not_wait_for_a_writer() -> None:
    with transaction.atomic():
        TopicTotal.objects.create(topic="t", first_seen=timezone.now(), last_seen=timezone.now())
        assert elsewhere(wrong) == set()


@pytest.mark.django_db(transaction=True)
def test_after_an_audit_the_connection_is_free_again(publish: Publish) -> None:
    audit()
    assert publish(event()).status_code == 202
    assert elsewhere(Batch.objects.count) == 1
