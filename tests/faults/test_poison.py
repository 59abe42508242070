"""A batch that cannot be stored: the others are, and it is put off for longer and longer, until it is a dead letter."""

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.db import OperationalError
from django.utils import timezone
from pytest_django import Settings

from events import dead_letters, inbox, store, wire
from events.audit import audit
from events.models import Batch, Event

pytestmark = pytest.mark.django_db(transaction=True)

POISON = b"\x00 not what wire.encode() writes"


def accept(*ids: str) -> Batch:
    raw = ",".join(f'{{"topic": "t", "event_id": "{one}", "source": "s"}}' for one in ids)
    return inbox.accept(list(wire.decode(f"[{raw}]".encode(), max_events=100)))


def accept_poison() -> tuple[Batch, bytes]:
    """A batch whose body is broken in its row, and the body as it was."""
    batch = accept("poison")
    body = bytes(Batch.objects.get(pk=batch.pk).body)
    Batch.objects.filter(pk=batch.pk).update(body=POISON)
    return batch, body


def make_due(batch: Batch) -> timedelta:
    """Let the batch's pause be over. Returns how long it was."""
    batch.refresh_from_db()
    pause = batch.next_attempt_at - timezone.now()
    Batch.objects.filter(pk=batch.pk).update(next_attempt_at=timezone.now())
    return pause


def books_hold() -> bool:
    return all(finding.holds for finding in audit())


def fail_for_good(batch: Batch, settings: Settings) -> None:
    for _ in range(settings.INBOX_MAX_ATTEMPTS):
        make_due(batch)
        store.drain()
    batch.refresh_from_db()


def test_the_others_of_its_chunk_are_stored(drain: Any) -> None:
    before = accept("1", "2")
    poison, _ = accept_poison()
    after = accept("2", "3")
    drain()
    for batch in (before, poison, after):
        batch.refresh_from_db()
    assert (before.status, after.status) == ("processed", "processed")
    assert sorted(Event.objects.values_list("event_id", flat=True)) == ["1", "2", "3"]
    assert (poison.status, poison.attempts) == ("pending", 1)
    assert books_hold()


def test_a_drain_does_not_spin_on_it() -> None:
    poison, _ = accept_poison()
    _, more = store.drain()
    assert not more
    assert store.drain()[0] == store.Stored()
    poison.refresh_from_db()
    assert poison.attempts == 1


def test_its_pauses_grow_until_it_is_a_dead_letter_that_keeps_body_and_error(settings: Settings) -> None:
    poison, _ = accept_poison()
    pauses = []
    for attempt in range(1, settings.INBOX_MAX_ATTEMPTS + 1):
        store.drain()
        poison.refresh_from_db()
        assert poison.attempts == attempt
        assert poison.status == ("failed" if attempt == settings.INBOX_MAX_ATTEMPTS else "pending")
        pauses.append(make_due(poison))
    assert all(longer > 1.5 * shorter for shorter, longer in pairwise(pauses))
    assert bytes(poison.body) == POISON
    assert "DecodeError" in poison.error
    assert store.drain()[0] == store.Stored()
    assert books_hold()


def test_a_replayed_dead_letter_is_stored_once_its_cause_is_mended(settings: Settings) -> None:
    poison, body = accept_poison()
    fail_for_good(poison, settings)
    Batch.objects.filter(pk=poison.pk).update(body=body)
    assert dead_letters.replay([poison.pk]) == [poison.pk]
    store.drain()
    poison.refresh_from_db()
    assert (poison.status, poison.unique, poison.body) == ("processed", 1, None)
    assert books_hold()


def test_a_discarded_dead_letter_is_counted_and_not_tried_again(settings: Settings) -> None:
    poison, body = accept_poison()
    fail_for_good(poison, settings)
    Batch.objects.filter(pk=poison.pk).update(body=body)
    assert dead_letters.discard([poison.pk]) == [poison.pk]
    store.drain()
    poison.refresh_from_db()
    assert poison.status == "discarded"
    assert not Event.objects.exists()
    assert books_hold()


def test_the_databases_own_trouble_is_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = accept("1")

    def locked(*_: Any) -> None:
        raise OperationalError("database is locked")

    with monkeypatch.context() as patched:
        patched.setattr(store, "_insert", locked)
        with pytest.raises(OperationalError):
            store.drain()
    batch.refresh_from_db()
    assert (batch.status, batch.attempts) == ("pending", 0)
    store.drain()
    batch.refresh_from_db()
    assert batch.status == "processed"
