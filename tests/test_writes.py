"""writes.py: what is new is inserted, each row is updated, counters are added to."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from django.db import IntegrityError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from events import inbox, wire, writes
from events.memory import LARGE_BYTES
from events.models import Batch, Delay, Duplicate, Event, TopicMinute, TopicTotal

pytestmark = pytest.mark.django_db

NOON = datetime(2025, 10, 21, 12, tzinfo=UTC)


COLUMNS = ("topic", "event_id", "source", "timestamp", "payload", "received_at", "batch")


def row(event_id: str, source: str = "s") -> tuple[Any, ...]:
    return ("t", event_id, source, NOON, "{}", NOON, 1)


def insert(*rows: Sequence[Any]) -> int:
    return Event.objects.insert_new(COLUMNS, rows)


def add(*counts: tuple[str, int, int], seen: datetime = NOON) -> None:
    TopicTotal.objects.add(
        [(*count, seen, seen) for count in counts],
        key=["topic"],
        counters=["unique", "duplicates"],
        latest="last_seen",
        once="first_seen",
    )


def batch() -> Batch:
    return Batch.objects.create(accepted_at=NOON, next_attempt_at=NOON, received=1, body=b"[]", size=2)


ZONES = st.sampled_from([UTC, timezone(timedelta(hours=-3, minutes=-30))])
#: A day from either end of time, which another offset would go beyond.
DAY = timedelta(days=1)


@given(st.datetimes(datetime.min + DAY, datetime.max - DAY, timezones=ZONES))
def test_moments_are_written_as_django_writes_them(moment: datetime) -> None:
    assert writes._adapter(connection)(moment) == connection.ops.adapt_datetimefield_value(moment)


# --- insert_new -------------------------------------------------------------------------------------------------------


def test_every_column_is_written() -> None:
    values = ("a", "b", "c", NOON + timedelta(microseconds=1), '{"é": "%s"}', NOON, 7)
    insert(values)
    assert Event.objects.values_list(*COLUMNS).get() == values


def test_rows_are_inserted_in_the_order_given() -> None:
    insert(*(row(name) for name in "cab"))
    assert list(Event.objects.order_by("id").values_list("event_id", flat=True)) == ["c", "a", "b"]


def test_a_stored_key_keeps_its_row() -> None:
    insert(row("1", source="first"))
    insert(row("1", source="second"))
    assert Event.objects.get().source == "first"


def test_of_one_key_twice_in_a_call_the_first_is_stored() -> None:
    insert(row("1", source="first"), row("1", source="second"))
    assert Event.objects.get().source == "first"


def test_insert_new_says_how_many_were_new() -> None:
    insert(row("1"))
    assert insert(row("1"), row("2"), row("3"), row("2")) == 2


@pytest.mark.parametrize("write", [insert, lambda: Batch.objects.update_each(["unique", "id"], [])])
def test_no_rows_are_no_statement(write: Callable[[], int], django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert write() == 0


def test_only_a_stored_key_is_passed_over() -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        insert((None, *row("1")[1:]))


# --- update_each ------------------------------------------------------------------------------------------------------


def test_each_row_gets_its_own_values_and_the_common_ones() -> None:
    one, other, untouched = batch(), batch(), batch()
    rows = [(1, 2, one.pk), (3, 4, other.pk)]
    Batch.objects.update_each(["unique", "duplicates", "id"], rows, error="why", body=None)
    assert list(Batch.objects.order_by("pk").values_list("pk", "unique", "duplicates", "error", "body")) == [
        (one.pk, 1, 2, "why", None),
        (other.pk, 3, 4, "why", None),
        (untouched.pk, 0, 0, "", b"[]"),
    ]


def test_a_field_that_is_not_named_stays() -> None:
    one = batch()
    Batch.objects.update_each(["unique", "id"], [(1, one.pk)])
    one.refresh_from_db()
    assert (one.unique, one.duplicates) == (1, 0)


def test_update_each_says_how_many_rows_there_were() -> None:
    one, gone = batch(), batch()
    Batch.objects.filter(pk=gone.pk).delete()
    assert Batch.objects.update_each(["unique", "id"], [(1, one.pk), (1, gone.pk)]) == 1


# --- add --------------------------------------------------------------------------------------------------------------


def totals() -> list[tuple[str, int, int]]:
    return list(TopicTotal.objects.order_by("topic").values_list("topic", "unique", "duplicates"))


def test_counters_are_added_to_what_is_stored() -> None:
    add(("a", 1, 2), ("b", 3, 4))
    add(("b", 10, 20), ("c", 5, 6))
    assert totals() == [("a", 1, 2), ("b", 13, 24), ("c", 5, 6)]


def test_counters_with_a_key_of_two_fields_are_kept_apart() -> None:
    minutes = [NOON, NOON + timedelta(minutes=1)]
    for _ in range(2):
        TopicMinute.objects.add(
            [(minute, topic, 1, 0) for topic in "ab" for minute in minutes],
            key=["minute", "topic"],
            counters=["unique", "duplicates"],
        )
    assert sorted(TopicMinute.objects.values_list("topic", "minute", "unique")) == [
        (topic, minute, 2) for topic in "ab" for minute in minutes
    ]


def test_the_fields_of_a_key_may_come_in_any_order() -> None:
    for _ in range(2):
        Delay.objects.add([(NOON, 10, 3)], key=["minute", "milliseconds"], counters=["events"])
    assert list(Delay.objects.values_list("minute", "milliseconds", "events")) == [(NOON, 10, 6)]


@pytest.mark.parametrize("days", [-1, 1])
def test_the_latest_moment_is_the_greatest_ever_given(days: int) -> None:
    later = NOON + timedelta(days=days)
    for seen in (NOON, later):
        add(("a", 1, 0), seen=seen)
    assert TopicTotal.objects.get().last_seen == max(NOON, later)


def test_the_first_moment_stays() -> None:
    for seen in (NOON, NOON + timedelta(days=1)):
        add(("a", 1, 0), seen=seen)
    assert TopicTotal.objects.get().first_seen == NOON


def test_counters_are_written_in_the_order_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[list[str]] = []
    execute = type(TopicTotal.objects.all())._execute_each

    def note(self: Any, sql: str, parameters: Any) -> int:
        parameters = list(parameters)
        written.append(
            [next(value for value in values if isinstance(value, str) and len(value) == 1) for values in parameters]
        )
        return execute(self, sql, parameters)

    monkeypatch.setattr(type(TopicTotal.objects.all()), "_execute_each", note)
    add(*((name, 1, 0) for name in "cab"))
    assert [keys for keys in written if keys != ["a", "b", "c"]] == []
    assert written


def test_adding_costs_two_statements_at_most_whatever_the_number_of_rows() -> None:
    with CaptureQueriesContext(connection) as few:
        add(("a", 1, 0))
    with CaptureQueriesContext(connection) as many:
        add(*((str(n), 1, 0) for n in range(50)))
    assert len(few) == len(many) <= 2


def test_adding_nothing_writes_nothing(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        add()


@pytest.mark.django_db(transaction=True)
def test_concurrent_additions_lose_nothing() -> None:
    def add_two(_: int) -> None:
        try:
            add(("a", 1, 2), ("b", 3, 0))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add_two, range(40)))
    assert totals() == [("a", 40, 80), ("b", 120, 0)]


def test_a_log_takes_the_same_row_twice() -> None:
    columns = ("topic", "event_id", "source", "received_at", "batch", "payload_differs", "payload")
    assert Duplicate.objects.insert_new(columns, [("t", "1", "s", NOON, 1, False, "")] * 2) == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("idempotency_key", [None, "k"])
def test_a_connection_is_not_kept_after_a_large_publish(idempotency_key: str | None) -> None:
    def publish(size: int) -> bool:
        """Whether its connection is kept."""
        payload = msgspec.Raw(b'{"x":"%s"}' % (b"y" * size))
        event = wire.Event(topic="t", event_id=str(size), source="s", payload=payload)
        inbox.accept([event], idempotency_key=idempotency_key and f"{idempotency_key}{size}")
        return connection.connection is not None

    assert publish(1000)
    assert not publish(LARGE_BYTES)
