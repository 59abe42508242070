"""Drains side by side, on databases with row locks: each takes what others do not hold, and none waits in a circle."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connections, transaction

from events import inbox, store, wire
from events.audit import audit
from events.models import Batch, Event

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif("not connections['default'].features.has_select_for_update_skip_locked", reason="one writer"),
]

NOON = datetime(2025, 10, 21, 12, tzinfo=UTC)
COLUMNS = ("topic", "event_id", "source", "timestamp", "payload", "received_at", "batch")


def publish(*names: str) -> int:
    batch = inbox.accept([wire.Event(topic="t", event_id=name, source="s", payload=wire.Raw(b"{}")) for name in names])
    return int(batch.pk)


def elsewhere(step: Callable[[], Any]) -> Any:
    """What the step gives in a connection of its own."""

    def run() -> Any:
        try:
            return step()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result(30)


def test_a_drain_takes_what_no_other_holds() -> None:
    held, free = publish("1"), publish("2")
    with transaction.atomic():
        Batch.objects.select_for_update().get(pk=held)
        stored, full = elsewhere(store.store_chunk)
    assert (stored.batches, full) == (1, False)
    assert list(Batch.objects.filter(status="processed").values_list("pk", flat=True)) == [free]


def test_a_chunk_is_limited_by_what_it_locked_and_not_by_what_others_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_EVENTS", 4)
    held = [publish(str(n)) for n in range(3)]
    for n in (10, 20, 30):
        publish(*(str(n + m) for m in range(3)))
    with transaction.atomic():
        list(Batch.objects.select_for_update().filter(pk__in=held))
        stored, full = elsewhere(store.store_chunk)
    assert (stored.batches, stored.events, full) == (1, 3, True)


def test_a_full_chunk_calls_for_more_drains_and_the_last_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_BATCHES", 2)
    for n in range(5):
        publish(str(n))
    called: list[int] = []
    store.drain(when_full=lambda: called.append(Event.objects.count()))
    assert called == [2, 4]


def test_the_same_keys_in_opposite_orders_end_in_no_deadlock() -> None:
    names = [f"{n:03}" for n in range(300)]
    start = threading.Barrier(4, timeout=20)

    def insert(batch: int) -> int:
        rows = [("t", name, "s", NOON, "{}", NOON, batch) for name in (names if batch % 2 else names[::-1])]
        try:
            start.wait()
            with transaction.atomic():
                return Event.objects.insert_new(COLUMNS, rows)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(insert, range(4))) == 300
    assert Event.objects.count() == 300


def test_ids_follow_the_order_of_acceptance_whatever_the_order_of_the_keys() -> None:
    publish("c", "a", "b")
    store.store_chunk()
    assert list(Event.objects.order_by("id").values_list("event_id", flat=True)) == ["c", "a", "b"]


def test_of_a_key_in_two_drains_one_is_stored_and_the_other_counted() -> None:
    for _ in range(8):
        publish("1", "2")
    start = threading.Barrier(4, timeout=20)

    def drain() -> None:
        try:
            start.wait()
            while store.store_chunk()[0].batches:
                pass
        finally:
            connections.close_all()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as threads:
        patch.setattr(store, "CHUNK_BATCHES", 1)
        for running in [threads.submit(drain) for _ in range(4)]:
            running.result(30)
    store.drain()
    assert Event.objects.count() == 2
    assert [finding for finding in audit() if not finding.holds] == []
