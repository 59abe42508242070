"""The claim of the service: whatever arrives how often, in whatever order and portions, each key is stored once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.utils import timezone
from hypothesis import event, given, settings
from hypothesis import strategies as st

from events import inbox, stats, store, wire
from events.audit import audit
from events.models import Batch, Duplicate, Event

pytestmark = pytest.mark.django_db

Key = tuple[str, str]


@dataclass
class Model:
    """What the service should be like, in the plainest words."""

    stored: dict[Key, str] = field(default_factory=dict)
    pending: list[list[tuple[Key, str]]] = field(default_factory=list)
    duplicates: dict[str, int] = field(default_factory=dict)
    broken: int = 0

    def store(self, batches: int) -> None:
        for batch in self.pending[:batches]:
            for key, source in batch:
                if key in self.stored:
                    self.duplicates[key[0]] = self.duplicates.get(key[0], 0) + 1
                else:
                    self.stored[key] = source
        self.pending = self.pending[batches:]


# Few keys, so that most events are duplicates of one kind or another.
keys = st.tuples(st.sampled_from("ab"), st.sampled_from("1234"))
batches = st.lists(keys, min_size=1, max_size=7)
steps = st.one_of(
    st.tuples(st.just("publish"), batches),
    st.tuples(st.just("publish"), batches),
    st.tuples(st.just("chunk"), st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 900))),
    st.tuples(st.just("drain"), st.none()),
    st.tuples(st.just("break"), st.none()),
    st.tuples(st.just("crash"), st.integers(1, 12)),
    st.tuples(st.just("error"), st.none()),
)


def stop_at_write(
    number: int, error: Exception, *, kinds: tuple[str, ...] = ("INSERT", "UPDATE")
) -> Callable[..., Any]:
    """Raises the error at the so-many-th write of these kinds, once."""
    seen = 0

    def stop(execute: Any, sql: str, *rest: Any) -> Any:
        nonlocal seen
        if sql.startswith(kinds):
            seen += 1
            if seen == number:
                raise error
        return execute(sql, *rest)

    return stop


class Service:
    """The real one, driven a step at a time beside its model."""

    def __init__(self) -> None:
        self.model = Model()
        self.published = 0
        self.rows: dict[int, dict[str, Any]] = {}

    def publish(self, keys: list[Key]) -> None:
        batch = []
        for key in keys:
            self.published += 1
            batch.append((key, str(self.published)))
        inbox.accept(
            [
                wire.Event(
                    topic=key[0], event_id=key[1], source=source, payload=wire.Raw(b'{"n":%s}' % source.encode())
                )
                for key, source in batch
            ]
        )
        self.model.pending.append(batch)

    def chunk(self, limits: tuple[int, int, int]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, limit in zip(("CHUNK_BATCHES", "CHUNK_EVENTS", "CHUNK_BYTES"), limits, strict=True):
                patch.setattr(store, name, limit)
            stored, _ = store.store_chunk()
        self.model.store(stored.batches - stored.failed_batches)

    def drain(self, _: None) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "GATHER_SECONDS", 0)
            _, more = store.drain()
        assert not more
        self.model.store(len(self.model.pending))

    def break_(self, _: None) -> None:
        """A batch comes in that nobody can read."""
        now = timezone.now()
        Batch.objects.create(accepted_at=now, next_attempt_at=now, received=1, body=b"?", size=1)
        self.model.broken += 1

    def crash(self, write: int) -> None:
        """The database goes away in the middle of a chunk."""
        with connection.execute_wrapper(stop_at_write(write, OperationalError("gone"))):
            try:
                with transaction.atomic():
                    stored, _ = store.store_chunk()
            except OperationalError:
                event("crashed")
                return
        self.model.store(stored.batches - stored.failed_batches)

    def error(self, _: None) -> None:
        """Something goes wrong with the chunk as a whole, and not with any batch of it alone."""
        if Batch.objects.filter(body=b"?", attempts=0).exists():
            return
        with connection.execute_wrapper(stop_at_write(1, ValueError("once"), kinds=("INSERT",))):
            stored, _ = store.store_chunk()
        self.model.store(stored.batches - stored.failed_batches)

    def check(self) -> None:
        model, books = self.model, stats.books()
        waiting = sum(map(len, model.pending)) + model.broken
        assert (books.unique, books.duplicates, books.pending, books.failed, books.discarded) == (
            len(model.stored),
            sum(model.duplicates.values()),
            waiting,
            0,
            0,
        )
        assert books.received == self.published + model.broken
        assert {topic: counts.duplicates for topic, counts in books.topics.items() if counts.duplicates} == (
            model.duplicates
        )
        rows = {row["id"]: row for row in Event.objects.values()}
        assert {(row["topic"], row["event_id"]): row["source"] for row in rows.values()} == model.stored
        assert len(rows) == len(model.stored)
        assert {pk: rows.get(pk) for pk in self.rows} == self.rows
        self.rows = rows
        assert Duplicate.objects.count() == books.duplicates
        assert [finding for finding in audit() if not finding.holds] == []


@given(st.lists(steps, min_size=3, max_size=14))
@settings(max_examples=40, deadline=None)
def test_each_key_is_stored_once_whatever_comes_in_whatever_order(steps: list[tuple[str, Any]]) -> None:
    with transaction.atomic():
        service = Service()
        for name, detail in [*steps, ("drain", None), ("drain", None)]:
            getattr(service, "break_" if name == "break" else name)(detail)
            service.check()
        transaction.set_rollback(True)


@given(st.lists(batches, min_size=1, max_size=6), st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 900)))
@settings(max_examples=20, deadline=None)
def test_how_the_inbox_is_cut_into_chunks_makes_no_difference(
    published: list[list[Key]], limits: tuple[int, int, int]
) -> None:
    outcomes = []
    for cut in (limits, (500, 2000, 10**9)):
        with transaction.atomic():
            service = Service()
            for keys in published:
                service.publish(keys)
            while service.model.pending:
                service.chunk(cut)
            outcomes.append(
                (
                    list(Event.objects.order_by("pk").values_list("topic", "event_id", "source", "payload")),
                    list(Batch.objects.order_by("pk").values_list("received", "unique", "duplicates", "status")),
                    list(Duplicate.objects.order_by("pk").values_list("topic", "event_id", "source", "payload")),
                    stats.books(),
                )
            )
            transaction.set_rollback(True)
    assert outcomes[0] == outcomes[1]


@given(st.lists(batches, min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_publishing_everything_again_adds_only_duplicates(published: list[list[Key]]) -> None:
    with transaction.atomic():
        service = Service()
        for keys in published:
            service.publish(keys)
        service.drain(None)
        before, rows = stats.books(), list(Event.objects.order_by("pk").values())
        for keys in published:
            service.publish(keys)
        service.drain(None)
        after = stats.books()
        assert list(Event.objects.order_by("pk").values()) == rows
        assert after.unique == before.unique
        assert after.duplicates == before.duplicates + before.received
        transaction.set_rollback(True)
