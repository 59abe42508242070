"""horizon.py: a reader of events misses none, in whatever order the transactions commit that store them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test import Client
from django.utils import timezone

from events import horizon, inbox, retention, store, wire
from events.audit import audit
from events.models import Batch, Event
from tests.conftest import event

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif("connection.vendor != 'postgresql'", reason="SQLite has one writer: see horizon.py"),
]

COLUMNS = ("topic", "event_id", "source", "timestamp", "payload", "received_at", "batch")


class Drain:
    """A transaction that stores events in a connection of its own, one step at a time."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], Any]] = []
        self._wake = threading.Condition()
        self._idle = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._commit = threading.Event()
        self._fail = False
        self._thread.start()

    def _run(self) -> None:
        try:
            with transaction.atomic():
                while not self._commit.is_set():
                    with self._wake:
                        self._wake.wait_for(lambda: self._steps or self._commit.is_set())
                        step = self._steps.pop(0) if self._steps else None
                    if step:
                        step()
                        with self._wake:
                            self._idle = True
                            self._wake.notify_all()
                if self._fail:
                    transaction.set_rollback(True)
        finally:
            connections.close_all()

    def do(self, step: Callable[[], Any]) -> None:
        with self._wake:
            self._idle = False
            self._steps.append(step)
            self._wake.notify_all()
            assert self._wake.wait_for(lambda: self._idle, timeout=20)

    def store(self, *names: str) -> None:
        now = timezone.now()
        self.do(horizon.hold)
        self.do(lambda: Event.objects.insert_new(COLUMNS, [("t", name, "s", now, "{}", now, 1) for name in names]))

    def end(self, *, fail: bool = False) -> None:
        self._fail = fail
        with self._wake:
            self._commit.set()
            self._wake.notify_all()
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def drains(count: int) -> Iterator[list[Drain]]:
    running = [Drain() for _ in range(count)]
    try:
        yield running
    finally:
        for one in running:
            one.end(fail=True)


class Reader:
    """Follows the feed, as a consumer does: from where it was, as far as there is something."""

    def __init__(self, limit: int = 2) -> None:
        self.seen: list[str] = []
        self._after = 0
        self._limit = limit

    def follow(self) -> list[str]:
        from events.api.events import Cursor, Query

        new: list[str] = []
        while page := Query(limit=self._limit).after(Cursor(False, self._after), self._limit).events:
            self._after = page[-1].id
            new += [found.event_id for found in page]
        self.seen += new
        return new


def test_a_reader_waits_for_the_lower_ids_of_a_drain_that_commits_later() -> None:
    reader = Reader()
    with drains(2) as (first, second):
        first.store("1", "2")
        second.store("3", "4")
        second.end()
        assert reader.follow() == []
        first.end()
        assert reader.follow() == ["1", "2", "3", "4"]


def test_a_drain_that_goes_on_storing_holds_back_what_others_store_after_its_begin() -> None:
    reader = Reader()
    with drains(3) as (first, second, third):
        first.store("1")
        second.store("2")
        second.end()
        first.store("3")
        third.store("4")
        third.end()
        assert reader.follow() == []
        first.end()
        assert reader.follow() == ["1", "2", "3", "4"]


def test_what_lies_below_every_running_drain_is_listed() -> None:
    reader = Reader()
    with drains(3) as (first, second, third):
        first.store("1")
        first.end()
        second.store("2")
        third.store("3")
        third.end()
        assert reader.follow() == ["1"]
        second.end()
        assert reader.follow() == ["2", "3"]


def test_a_drain_that_fails_holds_nobody_back() -> None:
    reader = Reader()
    with drains(2) as (first, second):
        first.store("1")
        second.store("2")
        second.end()
        first.end(fail=True)
        assert reader.follow() == ["2"]


def test_a_drain_whose_connection_is_cut_holds_nobody_back() -> None:
    reader = Reader()
    pids: list[int] = []
    with drains(2) as (first, second):
        first.store("1")
        second.store("2")
        second.end()
        first.do(lambda: pids.append(connections["default"].connection.info.backend_pid))
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", pids)
        assert reader.follow() == ["2"]


def test_of_an_empty_table_nothing_is_settled() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER SEQUENCE events_event_id_seq RESTART")
    assert horizon.settled() == 0
    with drains(2) as (first, second):
        first.do(horizon.hold)
        second.store("1")
        second.end()
        assert horizon.settled() == 0


def test_the_api_pages_up_to_the_horizon(client: Client, publish: Any) -> None:
    publish([event("1"), event("2")])
    store.store_chunk()
    with drains(1) as (running,):
        running.store("3")
        publish([event("4")])
        store.store_chunk()
        assert [found["event_id"] for found in client.get("/events").json()["events"]] == ["1", "2"]
        stream = client.get("/events", headers={"Accept": "application/x-ndjson"})
        assert b"".join(stream.streaming_content).count(b"\n") == 2
        running.end()
    assert [found["event_id"] for found in client.get("/events").json()["events"]] == ["1", "2", "3", "4"]


def test_readers_that_follow_parallel_drains_see_each_event_once() -> None:
    """Real drains: what they hold and when they commit is theirs."""
    for start in range(0, 400, 4):
        inbox.accept(
            [
                wire.Event(topic="t", event_id=str(n), source="s", payload=wire.Raw(b"{}"))
                for n in range(start, start + 6)
            ]
        )
    over = threading.Event()
    readers = [Reader(limit=7), Reader(limit=100)]

    def drain() -> None:
        try:
            while store.store_chunk()[0].batches:
                pass
        finally:
            connections.close_all()

    def read(reader: Reader) -> None:
        try:
            while not over.is_set():
                reader.follow()
        finally:
            connections.close_all()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "CHUNK_BATCHES", 3)
        reading = [threading.Thread(target=read, args=(reader,)) for reader in readers]
        draining = [threading.Thread(target=drain) for _ in range(4)]
        for thread in [*reading, *draining]:
            thread.start()
        for thread in draining:
            thread.join()
        store.drain()
        over.set()
        for thread in reading:
            thread.join()
    stored = list(Event.objects.order_by("id").values_list("event_id", flat=True))
    assert sorted(stored, key=int) == [str(n) for n in range(402)]
    for reader in readers:
        reader.follow()
        assert reader.seen == stored
    assert [finding for finding in audit() if not finding.holds] == []


def test_nothing_expires_that_a_running_drain_could_still_be_below(settings: Any) -> None:
    settings.EVENT_RETENTION_DAYS = 1
    long_ago = datetime.now(UTC) - timedelta(days=2)
    with drains(1) as (running,):
        running.store("1")
        Batch.objects.create(
            accepted_at=long_ago,
            next_attempt_at=long_ago,
            received=1,
            body=wire.encode([wire.Event(topic="t", event_id="2", source="s", payload=wire.Raw(b"{}"))]),
            size=1,
        )
        store.store_chunk()
        assert list(retention.prune()) == []
    assert [taken.kind for taken in retention.prune()] == ["events expired"]
