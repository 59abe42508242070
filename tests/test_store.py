"""store.py: chunks of the inbox become events and books; what fails stands in nobody's way."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import InterfaceError, OperationalError, connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from events import delays, inbox, store, wire
from events.audit import audit
from events.models import Batch, Delay, Duplicate, Event, Minute, SourceTotal, TopicMinute, TopicTotal
from tests.conftest import event

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]
NOON = datetime(2025, 10, 21, 12, 0, 30, tzinfo=UTC)


def pending(*events: dict[str, Any], at: datetime | None = None, **fields: Any) -> Batch:
    """A batch as inbox.accept() leaves it."""
    body = wire.encode(wire.decode(json.dumps(events).encode(), max_events=100_000)) if events else b"[]"
    at = at or timezone.now()
    return Batch.objects.create(
        **{"accepted_at": at, "next_attempt_at": at, "received": len(events), "body": body, "size": len(body)} | fields
    )


def stored_as_published(body: bytes, received: int) -> Batch:
    """A batch of a body that wire.encode() has written already."""
    return pending(received=received, body=body, size=len(body))


def broken(**fields: Any) -> Batch:
    """A batch whose body nobody can read."""
    return pending(**{"received": 1, "body": b"not JSON"} | fields)


def due_again(batch: Batch) -> None:
    Batch.objects.filter(pk=batch.pk).update(next_attempt_at=timezone.now())


def rows_of(model: Any) -> list[dict[str, Any]]:
    return list(model.objects.order_by("pk").values())


def everything() -> list[Any]:
    return [rows_of(model) for model in (Batch, Event, TopicTotal, TopicMinute, Duplicate)]


def all_holds() -> bool:
    return all(finding.holds for finding in audit())


# --- What is stored ---------------------------------------------------------------------------------------------------


def test_an_event_is_stored_as_it_was_published(drain: Drain) -> None:
    batch = pending(event("1", timestamp="2025-10-21T14:30:00.000001+02:00", payload={"z": 1, "a": "é"}), at=NOON)
    drain()
    [stored] = Event.objects.values("topic", "event_id", "source", "timestamp", "payload", "received_at", "batch_id")
    assert stored == {
        "topic": "t",
        "event_id": "1",
        "source": "test",
        "timestamp": datetime(2025, 10, 21, 12, 30, 0, 1, tzinfo=UTC),
        "payload": '{"z": 1, "a": "\\u00e9"}',
        "received_at": NOON,
        "batch_id": batch.pk,
    }


def test_an_event_without_a_timestamp_happened_when_it_was_accepted(drain: Drain) -> None:
    pending(event(), at=NOON)
    drain()
    assert Event.objects.get().timestamp == NOON


def test_a_processed_batch_is_a_receipt_without_a_body(drain: Drain) -> None:
    batch = pending(event("1"), event("2"), event("1"))
    before = timezone.now()
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.received, batch.unique, batch.duplicates) == ("processed", 3, 2, 1)
    assert (batch.body, batch.error) == (None, "")
    assert batch.processed_at is not None
    assert before <= batch.processed_at <= timezone.now()


def test_what_was_done_is_told(drain: Drain) -> None:
    pending(event("1"), event("2"))
    pending(event("2"))
    assert drain() == store.Stored(batches=2, events=3, unique=2, duplicates=1)


@pytest.mark.parametrize("chunk", [1, 500], ids=["chunk by chunk", "in one chunk"])
def test_of_one_key_the_first_accepted_is_stored(chunk: int, drain: Drain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_BATCHES", chunk)
    first = pending(event("1", source="first"), event("1", source="second"))
    second = pending(event("1", source="third"))
    drain()
    assert Event.objects.values_list("source", "batch_id").get() == ("first", first.pk)
    assert list(Batch.objects.order_by("pk").values_list("pk", "unique", "duplicates")) == [
        (first.pk, 1, 1),
        (second.pk, 0, 1),
    ]


def test_new_events_are_told_apart_in_a_chunk_that_has_stored_ones(drain: Drain) -> None:
    pending(event("1"))
    drain()
    mixed, old = pending(event("1"), event("2"), event("3")), pending(event("1"), event("3"))
    drain()
    assert list(Batch.objects.filter(pk__in=[mixed.pk, old.pk]).order_by("pk").values_list("unique", "duplicates")) == [
        (2, 1),
        (0, 2),
    ]


def test_a_key_is_topic_and_event_id_together(drain: Drain) -> None:
    pending(event("1", "a"), event("1", "b"), event("2", "a"), event("1", "A"))
    assert drain().unique == 4


def test_a_redelivered_drain_changes_nothing(drain: Drain) -> None:
    pending(event("1"), event("1"))
    drain()
    before = everything()
    assert drain() == store.Stored()
    assert everything() == before


def test_a_batch_that_another_worker_stored_meanwhile_is_left_alone(drain: Drain) -> None:
    batch = pending(event("1"))
    drain()
    before = everything()
    assert store._store_alone(batch.pk) == store.Stored()
    assert everything() == before


# --- The log of duplicates --------------------------------------------------------------------------------------------


def test_a_dropped_event_is_logged(drain: Drain) -> None:
    pending(event("1"))
    second = pending(event("1", source="again"), at=NOON)
    drain()
    [logged] = Duplicate.objects.values("topic", "event_id", "source", "received_at", "batch_id")
    assert logged == {
        "topic": "t",
        "event_id": "1",
        "source": "again",
        "received_at": NOON,
        "batch_id": second.pk,
    }


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        ({"a": 1}, {"a": 1}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, False),
        ({"a": {"b": [1, {"c": 2, "d": 3}]}}, {"a": {"b": [1, {"d": 3, "c": 2}]}}, False),
        ({"a": 1}, {"a": 2}, True),
        ({"a": 1}, {"a": 1, "b": None}, True),
        ({"a": 1}, {"a": "1"}, True),
        ({"a": 1}, {"a": True}, True),
        ({"a": 0}, {"a": False}, True),
        ({"a": [1, 2]}, {"a": [2, 1]}, True),
        ({}, {"a": None}, True),
    ],
)
def test_a_duplicate_that_says_something_else_is_marked(
    one: dict[str, Any], other: dict[str, Any], differs: bool, drain: Drain
) -> None:
    pending(event("1", payload=one), event("1", payload=other))
    drain()
    assert Duplicate.objects.get().payload_differs is differs


def test_spaces_make_no_difference(drain: Drain) -> None:
    spaced = pending(event("1", payload={"a": 1}), event("1", payload={"a": 1}))
    kept = bytes(spaced.body or b"")
    at = kept.rindex(b'{"a": 1}')
    Batch.objects.filter(pk=spaced.pk).update(body=kept[:at] + b'{ "a":1 }' + kept[at + 8 :])
    drain()
    assert Duplicate.objects.get().payload_differs is False


def test_the_payload_of_a_duplicate_is_kept_only_where_it_differs(drain: Drain) -> None:
    pending(event("1", payload={"a": 1}), event("1", payload={"a": 1}), event("1", payload={"a": 2}))
    drain()
    assert list(Duplicate.objects.order_by("pk").values_list("payload", flat=True)) == ["", '{"a": 2}']


def test_a_duplicate_is_compared_with_what_is_stored_in_its_own_topic(drain: Drain) -> None:
    pending(event("1", "a", payload={"a": 1}), event("1", "b", payload={"b": 1}))
    pending(event("1", "a", payload={"a": 1}), event("1", "b", payload={"b": 1}))
    drain()
    assert Duplicate.objects.filter(payload_differs=True).count() == 0


def test_a_duplicate_of_an_expired_event_cannot_differ(drain: Drain) -> None:
    pending(event("1"))
    drain()
    Event.objects.update(payload="")
    pending(event("1", payload={"n": 2}))
    drain()
    assert Duplicate.objects.get().payload_differs is False


def _text(size: int, last: str = "x") -> dict[str, str]:
    """A payload of so many bytes."""
    return {"a": "x" * (size - len('{"a": ""}') - len(last)) + last}


@pytest.mark.parametrize(
    ("stored", "dropped", "differs", "fetched"),
    [
        (_text(200), _text(200), False, 1),
        (_text(200), _text(200, "y"), True, 1),
        (_text(200), _text(201), True, 0),
        (_text(200), {"n": 1}, True, 0),
        ({"n": 1}, _text(200), True, 0),
        ({"a": "x" * 200, "b": 1}, {"b": 1, "a": "x" * 200}, True, 1),
        (_text(198, "é"), _text(198, "é"), False, 1),
    ],
    ids=[
        "same",
        "other text",
        "other length",
        "small",
        "small one stored",
        "other order",
        "more bytes than characters",
    ],
)
def test_a_large_payload_is_compared_byte_by_byte_and_fetched_only_where_its_length_does_not_tell(
    stored: dict[str, Any],
    dropped: dict[str, Any],
    differs: bool,
    fetched: int,
    drain: Drain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "COMPARED_BYTES", 100)
    pending(event("1", payload=stored))
    drain()
    pending(event("1", payload=dropped))
    with CaptureQueriesContext(connection) as statements:
        drain()
    assert Duplicate.objects.get().payload_differs is differs
    whole = [one["sql"] for one in statements if one["sql"].startswith('SELECT "events_event"."payload" ')]
    assert len(whole) == fetched


def test_the_log_can_be_turned_off(drain: Drain, settings: Any) -> None:
    settings.DUPLICATE_LOG_DAYS = 0
    pending(event("1"), event("1"))
    assert drain().duplicates == 1
    assert not Duplicate.objects.exists()


def test_a_batch_of_more_duplicates_than_a_statement_has_parameters_is_stored(
    drain: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("the limit is SQLite's")
    monkeypatch.setattr(store, "LOOK_UP_IDS", 900)
    connection.ensure_connection()
    category = 9  # SQLITE_LIMIT_VARIABLE_NUMBER
    usual = connection.connection.setlimit(category, 1000)
    try:
        events = [event(str(n)) for n in range(1500)]
        pending(*events)
        pending(*events)
        assert drain() == store.Stored(batches=2, events=3000, unique=1500, duplicates=1500)
    finally:
        connection.connection.setlimit(category, usual)


# --- The counters -----------------------------------------------------------------------------------------------------


def test_events_are_counted_by_topic(drain: Drain) -> None:
    pending(event("1", "a"), event("2", "a"), event("1", "b"))
    pending(event("1", "a"), event("1", "b"), event("3", "a"))
    drain()
    assert list(TopicTotal.objects.order_by("topic").values_list("topic", "unique", "duplicates")) == [
        ("a", 3, 1),
        ("b", 1, 1),
    ]


def test_events_are_counted_by_topic_and_minute_of_acceptance(drain: Drain) -> None:
    minutes = [NOON.replace(second=0), NOON.replace(second=0) + timedelta(minutes=1)]
    pending(event("1", "a"), event("1", "b"), at=minutes[0])
    pending(event("2", "a"), event("1", "a"), at=minutes[0] + timedelta(seconds=59, microseconds=999_999))
    pending(event("3", "a"), event("1", "b"), at=minutes[1])
    drain()
    assert sorted(TopicMinute.objects.values_list("minute", "topic", "unique", "duplicates")) == [
        (minutes[0], "a", 2, 1),
        (minutes[0], "b", 1, 0),
        (minutes[1], "a", 1, 0),
        (minutes[1], "b", 0, 1),
    ]


@pytest.mark.parametrize("chunk", [1, 500], ids=["chunk by chunk", "in one chunk"])
def test_a_topic_knows_when_it_was_first_and_last_seen(
    chunk: int, drain: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "CHUNK_BATCHES", chunk)
    for seconds in (0, 20, 10):
        pending(event("1"), at=NOON + timedelta(seconds=seconds))
    drain()
    total = TopicTotal.objects.get()
    assert (total.first_seen, total.last_seen) == (NOON, NOON + timedelta(seconds=20))


def test_in_one_chunk_the_first_seen_is_the_earliest(drain: Drain) -> None:
    for seconds in (10, 0):
        pending(event(str(seconds)), at=NOON + timedelta(seconds=seconds))
    drain()
    assert TopicTotal.objects.get().first_seen == NOON


def test_events_are_counted_by_source_and_reused_ids_with_them(drain: Drain) -> None:
    pending(event("1", source="x"), event("1", source="y", payload={"n": 2}), at=NOON)
    pending(event("1", source="y"), event("2", source="y"), at=NOON + timedelta(seconds=5))
    drain()
    columns = ("source", "unique", "duplicates", "differing", "last_seen")
    assert list(SourceTotal.objects.order_by("source").values_list(*columns)) == [
        ("x", 1, 0, 0, NOON),
        ("y", 1, 2, 1, NOON + timedelta(seconds=5)),
    ]


def test_events_are_counted_by_minute_of_acceptance(drain: Drain) -> None:
    minutes = [NOON.replace(second=0), NOON.replace(second=0) + timedelta(minutes=1)]
    pending(event("1", "a"), event("1", "b"), event("1", "a"), at=minutes[0])
    pending(event("2", "a"), at=minutes[1])
    drain()
    assert list(Minute.objects.order_by("minute").values_list("minute", "unique", "duplicates")) == [
        (minutes[0], 2, 1),
        (minutes[1], 1, 0),
    ]


def test_events_are_counted_by_how_long_they_waited(drain: Drain, monkeypatch: pytest.MonkeyPatch) -> None:
    pending(event("1"), event("2"), at=NOON)
    monkeypatch.setattr(store.timezone, "now", lambda: NOON + timedelta(seconds=40))
    drain()
    [(minute, milliseconds, events)] = Delay.objects.values_list("minute", "milliseconds", "events")
    assert (minute, events) == (NOON.replace(second=0) + timedelta(minutes=1), 2)
    assert 40_000 <= milliseconds < 80_000


def test_a_batch_that_was_replayed_has_waited_since_then(drain: Drain) -> None:
    pending(event("1"), at=NOON, next_attempt_at=timezone.now())
    drain()
    assert Delay.objects.get().milliseconds < 86_400_000


@pytest.mark.django_db(transaction=True)
def test_concurrent_drains_store_and_count_each_event_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_BATCHES", 3)
    for number in range(40):
        pending(event(str(number)), event(str(number % 7), "shared"), event(str(number)))

    def until_empty(_: int) -> store.Stored:
        total = store.Stored()
        try:
            while (chunk := store.store_chunk()[0]).batches:
                total += chunk
        finally:
            connections.close_all()
        return total

    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(until_empty, range(4)))
    assert sum(one.events for one in done) == 120
    assert sorted(TopicTotal.objects.values_list("topic", "unique", "duplicates")) == [("shared", 7, 33), ("t", 40, 40)]
    assert all_holds()


# --- Chunks -----------------------------------------------------------------------------------------------------------


def chunks() -> list[int]:
    """The number of batches in each chunk until nothing is pending."""
    sizes: list[int] = []
    while size := store.store_chunk()[0].batches:
        sizes.append(size)
    return sizes


def test_a_chunk_has_a_limit_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_BATCHES", 2)
    for number in range(5):
        pending(event(str(number)))
    assert chunks() == [2, 2, 1]


def test_a_chunk_has_a_limit_of_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_EVENTS", 4)
    for number in range(5):
        pending(event(f"{number}a"), event(f"{number}b"))
    assert chunks() == [2, 2, 1]


def test_a_chunk_has_a_limit_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {pending(event(str(number))).size for number in range(5)}
    monkeypatch.setattr(store, "CHUNK_BYTES", 2 * max(sizes))
    assert chunks() == [2, 2, 1]


@pytest.mark.parametrize("limit", ["CHUNK_EVENTS", "CHUNK_BYTES"])
def test_a_batch_beyond_the_limit_is_a_chunk_of_its_own(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, limit, 1)
    for number in range(2):
        pending(event(f"{number}a"), event(f"{number}b"))
    assert chunks() == [1, 1]


def test_a_batch_that_failed_before_is_a_chunk_of_its_own() -> None:
    for attempts in (0, 1, 0, 0):
        pending(event(), attempts=attempts)
    assert chunks() == [1, 1, 2]


def test_the_oldest_batches_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_BATCHES", 1)
    old, new = pending(event("1")), pending(event("2"))
    store.store_chunk()
    assert list(Batch.objects.filter(processed_at=None)) == [new]
    assert Event.objects.get().batch_id == old.pk


@pytest.mark.parametrize(("batches", "full"), [(1, False), (2, False), (3, True)])
def test_a_chunk_is_full_when_something_is_left(batches: int, full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_BATCHES", 2)
    for number in range(batches):
        pending(event(str(number)))
    assert store.store_chunk()[1] is full


def test_an_empty_inbox_is_nothing_to_store() -> None:
    assert store.store_chunk() == (store.Stored(), False)


def test_a_chunk_costs_the_same_statements_whatever_it_holds() -> None:
    counts = set()
    for size in (2, 60):
        for round_ in range(2):  # the second time all are duplicates
            for number in range(size):
                pending(event(f"{size}-{number}"), event(f"{size}-{number}b"))
            with CaptureQueriesContext(connection) as statements:
                store.store_chunk()
            counts.add((round_, len(statements)))
    assert len(counts) == 2


def test_a_chunk_is_one_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies between any two statements of a chunk leaves nothing of it behind."""
    pending(event("1"), event("1"))
    before = everything()
    step = 0
    while True:
        step += 1
        seen = 0

        def die(execute: Any, sql: str, params: Any, many: bool, context: Any, step: int = step) -> Any:
            nonlocal seen
            if sql.startswith(("INSERT", "UPDATE", "SELECT")):
                seen += 1
                if seen == step:
                    raise OperationalError("the worker was killed")
            return execute(sql, params, many, context)

        with connection.execute_wrapper(die):
            try:
                store.store_chunk()
            except OperationalError:
                assert everything() == before
            else:
                break
    assert step > 6


# --- Drains -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, without making them."""
    made: list[float] = []
    monkeypatch.setattr(store.time, "sleep", made.append)
    return made


def test_a_drain_goes_on_until_nothing_is_pending(pauses: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_BATCHES", 2)
    for number in range(5):
        pending(event(str(number)))
    assert store.drain() == (store.Stored(batches=5, events=5, unique=5), False)


def test_a_drain_pauses_only_after_a_chunk_that_was_not_full(
    pauses: Sequence[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "CHUNK_BATCHES", 2)
    for number in range(5):
        pending(event(str(number)))
    store.drain()
    assert pauses == [store.GATHER_SECONDS]


def test_a_drain_ends_when_its_time_is_over_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(store.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(store.time, "sleep", lambda _: None)
    monkeypatch.setattr(store, "CHUNK_BATCHES", 1)
    for number in range(5):
        pending(event(str(number)))
    assert store.drain(seconds=3) == (store.Stored(batches=2, events=2, unique=2), True)


# --- What goes wrong --------------------------------------------------------------------------------------------------


def test_a_broken_batch_does_not_stand_in_the_way(drain: Drain) -> None:
    pending(event("1"))
    broken()
    pending(event("2"))
    assert drain() == store.Stored(batches=3, events=2, unique=2, failed_batches=1)
    assert Event.objects.count() == 2


def test_a_broken_batch_keeps_its_body_and_says_why(drain: Drain) -> None:
    batch = broken()
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.attempts, bytes(batch.body or b"")) == ("pending", 1, b"not JSON")
    assert batch.error.startswith("DecodeError: JSON is malformed")


def test_a_broken_batch_is_not_tried_again_at_once(drain: Drain) -> None:
    batch = broken()
    drain()
    drain()
    batch.refresh_from_db()
    assert batch.attempts == 1


def test_a_batch_that_is_put_off_leaves_the_drain_with_nothing_to_do() -> None:
    broken(attempts=1, next_attempt_at=timezone.now() + timedelta(seconds=60))
    assert store.drain() == (store.Stored(), False)


def test_a_first_try_waits_for_no_clock(drain: Drain) -> None:
    pending(event("1"), at=timezone.now() + timedelta(hours=1))
    assert drain().unique == 1
    assert Delay.objects.get().milliseconds == min(delays.STEPS)


def test_a_pause_that_no_failure_makes_was_begun_by_a_wrong_clock_and_is_over(drain: Drain) -> None:
    longest = timedelta(seconds=inbox.LONGEST_RETRY_SECONDS)
    pending(event("1"), attempts=1, next_attempt_at=timezone.now() + longest + timedelta(minutes=1))
    pending(event("2"), attempts=1, next_attempt_at=timezone.now() + longest - timedelta(seconds=30))
    drain()
    assert Event.objects.get().event_id == "1"


def test_the_pause_doubles_with_every_attempt_up_to_a_limit(
    drain: Drain, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.INBOX_MAX_ATTEMPTS = 99
    batch = broken()
    pauses = []
    for _ in range(9):
        monkeypatch.setattr(store.timezone, "now", lambda: NOON)
        Batch.objects.filter(pk=batch.pk).update(next_attempt_at=NOON)
        drain()
        batch.refresh_from_db()
        pauses.append((batch.next_attempt_at - NOON).total_seconds())
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300]


def test_after_its_last_attempt_a_batch_is_a_dead_letter(
    drain: Drain, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.INBOX_MAX_ATTEMPTS = 3
    batch = broken()
    statuses = []
    for _ in range(3):
        due_again(batch)
        drain()
        batch.refresh_from_db()
        statuses.append(batch.status)
    assert statuses == ["pending", "pending", "failed"]
    assert (batch.attempts, bytes(batch.body or b"")) == (3, b"not JSON")
    assert "is a dead letter after 3 attempts: DecodeError" in caplog.text


def test_a_dead_letter_is_left_alone(drain: Drain) -> None:
    broken(status=Batch.Status.FAILED)
    assert drain() == store.Stored()


def test_a_batch_that_succeeds_at_last_forgets_its_error(drain: Drain) -> None:
    batch = pending(event("1"), attempts=2, error="DataError: once")
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.error, batch.unique, batch.duplicates) == ("processed", "", 1, 0)


def test_the_books_hold_with_broken_batches_in_every_state(drain: Drain, settings: Any) -> None:
    settings.INBOX_MAX_ATTEMPTS = 2
    pending(event("1"), event("1"))
    batch = broken(received=3)
    for _ in range(3):
        drain()
        assert all_holds()
        due_again(batch)


def failing(error: Exception, *, times: int = 99) -> Callable[..., Any]:
    """Breaks the insertion of events, the first so many times."""
    left = times

    def fail(execute: Any, sql: str, *rest: Any) -> Any:
        nonlocal left
        if left and sql.startswith("INSERT") and "events_event" in sql:
            left -= 1
            raise error
        return execute(sql, *rest)

    return fail


@pytest.mark.parametrize("kind", [OperationalError, InterfaceError])
@pytest.mark.parametrize("after", [0, 1], ids=["in the chunk", "one by one"])
def test_the_databases_own_trouble_is_nobodys_attempt(kind: type[Exception], after: int) -> None:
    pending(event("1"))
    if after:
        broken()
    before = everything()
    with connection.execute_wrapper(failing(kind("disk I/O error"))), pytest.raises(kind):
        store.store_chunk()
    assert everything() == before


def test_what_the_databases_trouble_left_is_stored_when_it_is_over(drain: Drain) -> None:
    pending(event("1"))
    with connection.execute_wrapper(failing(OperationalError("locked"))), pytest.raises(OperationalError):
        drain()
    assert drain().unique == 1


def test_a_batch_that_fails_half_way_leaves_nothing_of_it_behind(drain: Drain) -> None:
    batch = pending(event("1"))

    def fail(execute: Any, sql: str, *rest: Any) -> Any:
        if sql.startswith(("INSERT", "UPDATE")) and "events_topictotal" in sql:
            raise ValueError("after its events were inserted")
        return execute(sql, *rest)

    with connection.execute_wrapper(fail):
        drain()
    batch.refresh_from_db()
    assert (batch.status, batch.attempts) == ("pending", 1)
    assert not Event.objects.exists()
    assert all_holds()


def test_a_batch_that_another_worker_stored_meanwhile_is_not_put_off(drain: Drain) -> None:
    batch = pending(event("1"))
    drain()
    before = everything()
    store._put_off(batch.pk, "too late")
    assert everything() == before


@pytest.mark.skipif(connection.vendor != "sqlite", reason="with row locks what is read is held")
@pytest.mark.parametrize("taken", [1, 2])
def test_what_another_drain_stored_after_it_was_read_is_left_alone(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [pending(event("1"), event("1")), pending(event("2"))]
    claim = store._claim

    def claim_and_lose() -> Any:
        claimed = claim()
        for batch in batches[:taken]:
            store._store_alone(batch.pk)
        return claimed

    monkeypatch.setattr(store, "_claim", claim_and_lose)
    left = store.Stored(batches=1, events=1, unique=1) if taken == 1 else store.Stored()
    # It goes on: the other drain may have left what came after.
    assert store.store_chunk() == (left, True)
    assert Event.objects.count() == 2
    assert all_holds()


def test_an_error_before_any_batch_was_claimed_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(store, "_claim", refuse)
    with pytest.raises(ZeroDivisionError):
        store.store_chunk()


def test_a_chunk_that_failed_once_is_stored_one_by_one(drain: Drain) -> None:
    pending(event("1"))
    pending(event("1"), event("2"))
    with connection.execute_wrapper(failing(ValueError("for the chunk only"), times=1)):
        assert drain() == store.Stored(batches=2, events=3, unique=2, duplicates=1)
    assert all_holds()
