"""inbox.py: on disk before the answer, one ring for all that gathers, and nothing accepted in part."""

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import current_app
from django.core.cache import cache
from django.db import OperationalError, connection, connections
from django.utils import timezone

from events import inbox, store, tasks, wire
from events.models import Batch, Event

pytestmark = pytest.mark.django_db

Rings = list[str]


@pytest.fixture
def rings(monkeypatch: pytest.MonkeyPatch) -> Rings:
    """The tasks that were sent."""
    sent: Rings = []
    monkeypatch.setattr(current_app, "send_task", lambda name, **_: sent.append(name))
    return sent


def events(*ids: str) -> list[wire.Event]:
    return [wire.Event(topic="t", event_id=name, source="s", payload=wire.Raw(b"{}")) for name in ids or ("1",)]


@contextmanager
def full_disk() -> Iterator[None]:
    """Every INSERT of this thread fails."""

    def refuse(execute: Any, sql: str, *rest: Any) -> Any:
        if sql.startswith("INSERT"):
            raise OperationalError("database or disk is full")
        return execute(sql, *rest)

    with connection.execute_wrapper(refuse):
        yield


@contextmanager
def noted(statements: list[str]) -> Iterator[None]:
    """Notes the statements of this thread that are more than a bracket around others."""

    def note(execute: Any, sql: str, *rest: Any) -> Any:
        if not sql.startswith(("SAVEPOINT", "RELEASE", "BEGIN", "COMMIT")):
            statements.append(sql)
        return execute(sql, *rest)

    with connection.execute_wrapper(note):
        yield


def in_threads(call: Callable[[int], Any], count: int) -> list[Any]:
    """Calls it in as many threads at once; gives what each returned or raised."""
    together = threading.Barrier(count)

    def one(number: int) -> Any:
        try:
            together.wait()
            return call(number)
        except Exception as error:
            return error
        finally:
            connections.close_all()

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count)))


# --- accept -----------------------------------------------------------------------------------------------------------


def test_an_accepted_publish_is_a_pending_batch() -> None:
    before = timezone.now()
    batch = inbox.accept(events("1", "2"))
    stored = Batch.objects.get(pk=batch.pk)
    assert (stored.status, stored.received, stored.attempts, stored.error) == ("pending", 2, 0, "")
    assert before <= stored.accepted_at <= timezone.now()
    assert stored.processed_at is None


def test_the_batch_keeps_the_events_and_their_size() -> None:
    batch = Batch.objects.get(pk=inbox.accept(events("1", "2")).pk)
    assert [kept.event_id for kept in wire.decode_kept(bytes(batch.body or b""))] == ["1", "2"]
    assert batch.size == len(batch.body or b"")


def test_a_new_batch_may_be_tried_at_once() -> None:
    assert inbox.accept(events()).next_attempt_at <= timezone.now()


def test_an_accept_is_one_insert(rings: Rings, settings: Any) -> None:
    settings.INBOX_MAX_EVENTS = 0
    statements: list[str] = []
    with noted(statements):
        inbox.accept(events(*map(str, range(100))))
    assert [statement.split()[0] for statement in statements] == ["INSERT"]


@pytest.mark.django_db(transaction=True)
def test_the_batch_is_committed_before_the_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def look(_: str, **__: Any) -> None:
        seen.extend(in_threads(lambda _: Batch.objects.count(), 1))

    monkeypatch.setattr(current_app, "send_task", look)
    inbox.accept(events())
    inbox.answer_doorbell()
    inbox.accept(events(), idempotency_key="k")
    assert seen == [1, 2]


@pytest.mark.parametrize("key", [None, "k"])
def test_what_the_database_refuses_is_not_accepted(key: str | None, rings: Rings) -> None:
    with full_disk(), pytest.raises(OperationalError):
        inbox.accept(events(), idempotency_key=key)
    assert not Batch.objects.exists()
    assert rings == []


# --- The doorbell -----------------------------------------------------------------------------------------------------


def test_a_publish_rings(rings: Rings) -> None:
    inbox.accept(events())
    assert rings == ["events.process_inbox"]


def test_the_ring_names_the_task_that_drains() -> None:
    assert tasks.process_inbox.name == inbox.PROCESS_INBOX


def test_while_a_ring_is_outstanding_nobody_rings(rings: Rings) -> None:
    for number in range(5):
        inbox.accept(events(str(number)), idempotency_key=str(number) if number % 2 else None)
    assert len(rings) == 1


def test_after_the_doorbell_was_answered_the_next_publish_rings(rings: Rings) -> None:
    inbox.accept(events())
    inbox.answer_doorbell()
    inbox.accept(events())
    assert len(rings) == 2


def test_a_publish_with_an_idempotency_key_rings(rings: Rings) -> None:
    inbox.accept(events(), idempotency_key="k")
    assert len(rings) == 1


def test_a_lost_ring_is_outstanding_for_some_seconds_only(rings: Rings, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[Any] = []
    monkeypatch.setattr(cache, "add", lambda _key, _value, timeout: timeouts.append(timeout) or True)
    inbox.ring()
    assert timeouts == [inbox.RING_SECONDS]


def test_a_ring_can_be_forced(rings: Rings) -> None:
    assert [inbox.ring(), inbox.ring(), inbox.ring(even_if_rung=True)] == [True, False, True]
    assert len(rings) == 2


def test_a_forced_ring_is_outstanding_like_any_other(rings: Rings) -> None:
    inbox.ring(even_if_rung=True)
    assert inbox.ring() is False


def broken(*_: Any, **__: Any) -> None:
    raise ConnectionError("nobody there")


@pytest.mark.parametrize("where", [(current_app, "send_task"), (cache, "add")], ids=["broker", "cache"])
def test_a_broken_doorbell_leaves_the_publish_accepted(
    where: tuple[Any, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(*where, broken)
    assert inbox.accept(events()).pk
    assert "doorbell out of order: nobody there" in caplog.text


def test_a_broken_doorbell_is_left_alone_for_a_moment(rings: Rings, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(inbox.time, "monotonic", lambda: now)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(cache, "add", broken)
        assert inbox.ring() is False
    assert inbox.ring() is False
    now += inbox.RING_PAUSE_SECONDS
    assert inbox.ring() is True


def test_a_cache_that_breaks_while_the_doorbell_is_answered_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "delete", broken)
    inbox.answer_doorbell()
    assert "doorbell out of order: nobody there" in caplog.text


# --- The task ---------------------------------------------------------------------------------------------------------


def test_the_task_stores_what_is_pending_and_says_how_much(rings: Rings) -> None:
    inbox.accept(events("1", "2", "1"))
    assert tasks.process_inbox() == "2 new, 1 dropped"


def test_a_drain_in_which_a_batch_failed_fails_when_all_else_is_stored(rings: Rings) -> None:
    broken_batch()
    batch = inbox.accept(events("1"))
    with pytest.raises(tasks.BatchesFailed) as raised:
        tasks.process_inbox()
    assert str(raised.value) == "1 of 2 batches failed; 1 new, 0 dropped"
    batch.refresh_from_db()
    assert batch.status == Batch.Status.PROCESSED
    assert tasks.BatchesFailed in tasks.process_inbox.throws


def broken_batch() -> None:
    now = timezone.now()
    Batch.objects.create(accepted_at=now, next_attempt_at=now, received=1, body=b"not JSON", size=8)


@pytest.mark.parametrize(
    ("stored", "level", "said"),
    [
        (store.Stored(batches=2, events=2, unique=2), "INFO", "stored"),
        (store.Stored(batches=2, events=1, unique=1, failed_batches=1), "WARNING", "stored, but not all"),
        (store.Stored(batches=3, failed_batches=3), "WARNING", "not stored"),
    ],
)
def test_the_line_of_a_drain_says_whether_it_stored_anything(
    stored: store.Stored, level: str, said: str, rings: Rings, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.store, "drain", lambda **_: (stored, False))
    with caplog.at_level("INFO", "events.tasks"), suppress(tasks.BatchesFailed):
        tasks.process_inbox()
    assert [(line.levelname, line.message) for line in caplog.records] == [(level, said)]


def test_the_task_answers_the_doorbell_before_it_reads(rings: Rings, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox.accept(events())
    rung = []
    monkeypatch.setattr(tasks.store, "drain", lambda **_: rung.append(inbox.ring()) or (tasks.store.Stored(), False))
    tasks.process_inbox()
    assert rung == [True]


@pytest.mark.parametrize("left", [True, False])
def test_the_task_rings_again_only_if_something_is_left(
    left: bool, rings: Rings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.store, "drain", lambda **_: (tasks.store.Stored(), left))
    tasks.process_inbox()
    assert len(rings) == left


# --- Idempotency keys -------------------------------------------------------------------------------------------------


def test_the_same_publish_under_the_same_key_gets_the_first_batch() -> None:
    first = inbox.accept(events(), idempotency_key="k")
    second = inbox.accept(events(), idempotency_key="k")
    assert (second.pk, second.accepted_at) == (first.pk, first.accepted_at)
    assert Batch.objects.count() == 1


def test_the_key_is_remembered_after_the_batch_was_processed(drain: Callable[[], Any]) -> None:
    first = inbox.accept(events(), idempotency_key="k")
    drain()
    assert inbox.accept(events(), idempotency_key="k").pk == first.pk


def test_another_body_under_the_same_key_is_refused() -> None:
    inbox.accept(events("1"), idempotency_key="k")
    with pytest.raises(inbox.KeyReused):
        inbox.accept(events("2"), idempotency_key="k")
    assert Batch.objects.count() == 1


def test_a_key_whose_batch_retention_takes_meanwhile_is_free(monkeypatch: pytest.MonkeyPatch, rings: Rings) -> None:
    gone = inbox.accept(events(), idempotency_key="k")
    find = inbox._earlier

    def too_late(batch: Batch) -> Batch | None:
        Batch.objects.filter(pk=gone.pk).delete()
        return find(batch)

    monkeypatch.setattr(inbox, "_earlier", too_late)
    assert inbox.accept(events(), idempotency_key="k").pk == Batch.objects.get().pk != gone.pk


def test_another_key_is_another_publish() -> None:
    assert inbox.accept(events(), idempotency_key="k").pk != inbox.accept(events(), idempotency_key="K").pk


def test_publishes_without_a_key_have_nothing_to_do_with_each_other() -> None:
    assert inbox.accept(events()).pk != inbox.accept(events()).pk


@pytest.mark.django_db(transaction=True)
def test_of_concurrent_publishes_with_one_key_one_is_accepted(rings: Rings) -> None:
    batches = in_threads(lambda _: inbox.accept(events(), idempotency_key="k").pk, 8)
    assert batches == [Batch.objects.get().pk] * 8


@pytest.mark.django_db(transaction=True)
def test_of_concurrent_publishes_with_one_key_and_two_bodies_one_body_wins(rings: Rings) -> None:
    answers = in_threads(lambda number: inbox.accept(events(str(number % 2)), idempotency_key="k").pk, 8)
    assert answers.count(Batch.objects.get().pk) == 4
    assert sum(isinstance(answer, inbox.KeyReused) for answer in answers) == 4


# --- Group commit -----------------------------------------------------------------------------------------------------


class SlowDisk:
    """Its first write lasts until all the other threads wait; from then on it may refuse."""

    def __init__(self, *, threads: int, full: bool = False) -> None:
        self.threads = threads
        self.full = full
        self.writes = 0
        self.busy = threading.Event()

    def _write(self, execute: Any, sql: str, *rest: Any) -> Any:
        if sql.startswith("INSERT"):
            self.writes += 1
            self.busy.set()
            pause = threading.Event()
            while self.writes == 1 and len(inbox._group._waiting) < self.threads - 1:
                pause.wait(0.001)
            if self.full and self.writes > 1:
                raise OperationalError("database or disk is full")
        return execute(sql, *rest)

    def accept(self, number: int, key: str | None = None) -> Batch:
        if number:
            self.busy.wait()
        with connection.execute_wrapper(self._write):
            return inbox.accept(events(str(number)), idempotency_key=key)

    def accept_keyed(self, number: int) -> Batch:
        """Accepts every other one under a key of its own."""
        return self.accept(number, f"key {7 * number % 8}" if number % 2 else None)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("accept", [SlowDisk.accept, SlowDisk.accept_keyed])
def test_publishes_that_wait_for_the_disk_share_one_write(accept: Any, rings: Rings) -> None:
    disk = SlowDisk(threads=8)
    in_threads(lambda number: accept(disk, number), 8)
    assert disk.writes == 2
    assert Batch.objects.count() == 8


@pytest.mark.django_db(transaction=True)
def test_of_those_that_share_a_write_and_a_key_one_is_written(rings: Rings) -> None:
    disk = SlowDisk(threads=8)
    batches = in_threads(lambda number: inbox_accept_same(disk, number), 8)
    assert disk.writes == 2
    assert len({batch.pk for batch in batches}) == Batch.objects.count() == 5


def inbox_accept_same(disk: SlowDisk, number: int) -> Batch:
    """Accepts the last four threads' publishes as one."""
    if number < 4:
        return disk.accept(number)
    disk.busy.wait()
    with connection.execute_wrapper(disk._write):
        return inbox.accept(events("same"), idempotency_key="same")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("accept", [SlowDisk.accept, SlowDisk.accept_keyed])
def test_each_waiter_gets_its_own_batch(accept: Any, rings: Rings) -> None:
    disk = SlowDisk(threads=8)
    for number, batch in enumerate(in_threads(lambda number: accept(disk, number), 8)):
        [kept] = wire.decode_kept(bytes(Batch.objects.get(pk=batch.pk).body or b""))
        assert kept.event_id == str(number)


@pytest.mark.django_db(transaction=True)
def test_an_error_reaches_all_that_waited_and_nobody_else(rings: Rings) -> None:
    answers = in_threads(SlowDisk(threads=8, full=True).accept, 8)
    assert sum(isinstance(answer, OperationalError) for answer in answers) == 7
    assert [answer.pk for answer in answers if isinstance(answer, Batch)] == [Batch.objects.get().pk]


@pytest.mark.django_db(transaction=True)
def test_many_publishes_at_once_are_all_on_disk_when_they_return(rings: Rings) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        answers = in_threads(lambda number: [inbox.accept(events(f"{number}-{n}")).pk for n in range(40)], 8)
    finally:
        sys.setswitchinterval(interval)
    assert sorted(itertools.chain(*answers)) == sorted(Batch.objects.values_list("pk", flat=True))


@pytest.mark.django_db(transaction=True)
def test_after_an_error_the_next_publish_is_accepted(rings: Rings) -> None:
    with full_disk(), pytest.raises(OperationalError):
        inbox.accept(events())
    assert inbox.accept(events()).pk == Batch.objects.get().pk


@pytest.mark.django_db(transaction=True)
def test_one_of_those_that_share_a_write_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    monkeypatch.setattr(inbox, "ring", lambda: tries.append(1))
    in_threads(SlowDisk(threads=8).accept, 8)
    assert len(tries) == 2


# --- A full inbox -----------------------------------------------------------------------------------------------------


def test_a_full_inbox_accepts_nothing(settings: Any, rings: Rings) -> None:
    settings.INBOX_MAX_EVENTS = 3
    inbox.accept(events("1", "2"))
    with pytest.raises(inbox.InboxFull):
        inbox.accept(events("3", "4"))
    assert Batch.objects.count() == 1


def test_the_last_place_is_given_away(settings: Any) -> None:
    settings.INBOX_MAX_EVENTS = 3
    inbox.accept(events("1", "2"))
    inbox.accept(events("3"))
    assert inbox.pending_events() == 3


def test_an_empty_inbox_takes_a_publish_of_any_size(settings: Any) -> None:
    settings.INBOX_MAX_EVENTS = 3
    assert inbox.accept(events("1", "2", "3", "4")).received == 4


def test_without_a_limit_the_inbox_is_never_full(settings: Any) -> None:
    settings.INBOX_MAX_EVENTS = 0
    inbox.accept(events("1"))
    assert inbox.accept(events("2")).pk


def test_an_inbox_that_was_drained_has_room_again(
    settings: Any, drain: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.INBOX_MAX_EVENTS = 2
    now = 100.0
    monkeypatch.setattr(inbox.time, "monotonic", lambda: now)
    inbox.accept(events("1", "2"))
    drain()
    now += inbox.PENDING_KNOWN_SECONDS + 0.1
    assert inbox.accept(events("3")).pk


def test_what_others_accepted_is_counted_too(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.INBOX_MAX_EVENTS = 5
    now = 100.0
    monkeypatch.setattr(inbox.time, "monotonic", lambda: now)
    inbox.accept(events("1"))
    pending(received=4)
    now += inbox.PENDING_KNOWN_SECONDS + 0.1
    with pytest.raises(inbox.InboxFull):
        inbox.accept(events("2"))


def test_the_database_is_not_asked_for_every_publish(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.INBOX_MAX_EVENTS = 100
    now = 100.0
    asked: list[int] = []
    monkeypatch.setattr(inbox.time, "monotonic", lambda: now)
    monkeypatch.setattr(inbox, "pending_events", lambda: asked.append(1) or 0)
    for number in range(10):
        inbox.accept(events(str(number)))
    assert len(asked) == 1


# --- What is pending --------------------------------------------------------------------------------------------------


def pending(**fields: Any) -> Batch:
    now = timezone.now()
    return Batch.objects.create(
        **{"accepted_at": now, "next_attempt_at": now, "received": 1, "body": b"[]", "size": 2} | fields
    )


def test_only_pending_events_are_pending() -> None:
    pending(received=2)
    pending(received=3)
    pending(received=10, status=Batch.Status.FAILED)
    pending(received=20, status=Batch.Status.DISCARDED, body=None)
    pending(received=40, status=Batch.Status.PROCESSED, body=None, processed_at=timezone.now())
    assert inbox.pending_events() == 5


def test_nothing_pending_is_zero_since_never() -> None:
    assert (inbox.pending_events(), inbox.due_since()) == (0, None)


def test_what_waits_has_waited_since_the_first_of_it_became_due() -> None:
    moments = [datetime(2025, 10, day, tzinfo=UTC) for day in (1, 2, 3)]
    pending(next_attempt_at=moments[0], status=Batch.Status.FAILED)
    pending(next_attempt_at=moments[2])
    pending(next_attempt_at=moments[1])
    assert inbox.due_since() == moments[1]


def test_a_batch_in_the_pause_after_a_failure_is_not_due() -> None:
    pending(accepted_at=datetime(2025, 10, 1, tzinfo=UTC), attempts=1, next_attempt_at=in_a_minute())
    assert inbox.due_since() is None


def test_a_batch_whose_pause_no_failure_makes_is_due() -> None:
    moment = in_a_minute() + timedelta(seconds=inbox.LONGEST_RETRY_SECONDS)
    pending(attempts=1, next_attempt_at=moment)
    assert inbox.due_since() == moment


def in_a_minute() -> datetime:
    return timezone.now() + timedelta(minutes=1)


@pytest.mark.parametrize("question", [inbox.pending_events, inbox.due_since])
def test_what_is_pending_is_read_from_the_index_of_open_batches(question: Callable[[], Any]) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("a plan that only SQLite gives")
    statements: list[tuple[str, Any]] = []

    def note(execute: Any, sql: str, params: Any, *rest: Any) -> Any:
        statements.append((sql, params))
        return execute(sql, params, *rest)

    with connection.execute_wrapper(note):
        question()
    [(sql, params)] = statements
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
        plan = " ".join(step[3] for step in cursor.fetchall())
    assert "batch_open" in plan
    assert "TEMP B-TREE" not in plan


def test_a_publish_stores_no_event_by_itself() -> None:
    inbox.accept(events())
    assert not Event.objects.exists()
