"""retention.py: what is too old goes, a slice at a time, and at every instant the books know what went."""

import json
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aggregator_project.celery import app
from events import retention, stats, store, tasks
from events.audit import audit
from events.models import Batch, Delay, Duplicate, Event, Minute, Pruned, TopicMinute, TopicTotal
from events.retention import prune
from tests.conftest import Publish, event
from tests.test_store import pending

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]


@pytest.fixture(autouse=True)
def _days(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.EVENT_RETENTION_DAYS = 10
    settings.DEDUP_RETENTION_DAYS = 20
    settings.BATCH_RETENTION_DAYS = 30
    settings.DUPLICATE_LOG_DAYS = 7
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0)


def days_ago(days: float) -> Any:
    return timezone.now() - timedelta(days=days)


def stored(drain: Drain, *ids: str, days: float, topic: str = "t") -> Batch:
    """A batch of these events that was accepted and stored so many days ago."""
    batch = pending(*(event(one, topic) for one in ids), at=days_ago(days))
    drain()
    Batch.objects.filter(pk=batch.pk).update(processed_at=days_ago(days))
    return batch


def pruned() -> dict[str, int]:
    gone: dict[str, int] = {}
    for taken in prune():
        gone[taken.kind] = gone.get(taken.kind, 0) + taken.rows
        assert wrong() == []
    return gone


def wrong() -> list[Any]:
    return [finding for finding in audit() if not finding.holds]


def listed(client: Client, query: str = "") -> tuple[int, list[str]]:
    answer = client.get(f"/events?{query}").json()
    return answer["count"], [one["event_id"] for one in answer["events"]]


# --- Events -----------------------------------------------------------------------------------------------------------


def test_an_old_event_is_not_listed_and_not_counted(drain: Drain, client: Client) -> None:
    stored(drain, "1", "2", days=11)
    stored(drain, "3", days=9)
    assert pruned()["events expired"] == 2
    assert listed(client) == (1, ["3"])
    assert listed(client, "topic=t") == (1, ["3"])
    assert listed(client, "source=test") == (1, ["3"])
    assert listed(client, "since=2000-01-01T00:00:00Z") == (1, ["3"])
    assert listed(client, "event_id=1") == (0, [])
    assert listed(client, "topic=t&event_id=2") == (0, [])


def test_an_old_event_is_in_no_stream(drain: Drain, client: Client) -> None:
    stored(drain, "1", days=11)
    stored(drain, "2", days=9)
    pruned()
    answer = client.get("/events", headers={"Accept": "application/x-ndjson"})
    assert [json.loads(line)["event_id"] for line in b"".join(answer).splitlines()] == ["2"]


def test_pages_go_on_where_events_expire_between_them(drain: Drain, client: Client) -> None:
    stored(drain, "1", "2", days=11)
    stored(drain, "3", "4", "5", days=9)
    first = client.get("/events?limit=1").json()
    pruned()
    second = client.get(first["next"]).json()
    assert [one["event_id"] for one in second["events"]] == ["3"]
    assert client.get(second["previous"]).json()["events"] == []


def test_its_payload_is_gone_and_its_key_is_not(drain: Drain) -> None:
    stored(drain, "1", days=11)
    pruned()
    assert Event.objects.values_list("topic", "event_id", "payload").get() == ("t", "1", "")


def test_a_late_duplicate_is_still_a_duplicate(drain: Drain, client: Client) -> None:
    stored(drain, "1", days=11)
    pruned()
    pending(event("1", payload={"n": 2}))
    assert (drain().duplicates, stats.books().unique) == (1, 1)
    assert wrong() == []
    assert listed(client) == (0, [])


def test_a_late_duplicate_is_not_said_to_differ_from_what_is_gone(drain: Drain) -> None:
    stored(drain, "1", days=11)
    pruned()
    pending(event("1", payload={"n": 2}))
    drain()
    assert Duplicate.objects.values_list("payload_differs", "payload").get() == (False, "")


def test_a_key_goes_in_the_end_and_its_event_can_come_again(drain: Drain, client: Client) -> None:
    stored(drain, "1", days=21)
    assert pruned()["keys removed"] == 1
    assert not Event.objects.exists()
    pending(event("1"))
    assert drain().unique == 1
    assert (stats.books().unique, listed(client)) == (2, (1, ["1"]))
    assert wrong() == []


def test_an_event_stored_late_stays_longer_and_goes_with_those_beside_it(drain: Drain, client: Client) -> None:
    stored(drain, "young", days=9)
    stored(drain, "late", days=11)
    assert "events expired" not in pruned()
    assert listed(client) == (2, ["young", "late"])


@pytest.mark.parametrize("days", [5, 5000])
def test_nothing_expires_unless_asked_to(days: float, drain: Drain, settings: Any) -> None:
    settings.EVENT_RETENTION_DAYS = settings.DEDUP_RETENTION_DAYS = settings.BATCH_RETENTION_DAYS = 0
    stored(drain, "1", days=days)
    pruned()
    assert Event.objects.exclude(payload="").exists()
    assert Batch.objects.exists()


def test_the_admin_shows_neither_an_expired_event_nor_its_payload(drain: Drain, admin_client: Client) -> None:
    old = stored(drain, "old-one", days=11)
    stored(drain, "young-one", days=9)
    pending(event("old-one"))
    drain()
    pruned()
    gone = Event.objects.get(event_id="old-one")
    page = admin_client.get("/admin/events/event/").content.decode()
    assert "young-one" in page
    assert "old-one" not in page
    assert admin_client.get(f"/admin/events/event/{gone.pk}/change/").status_code == 404
    assert "old-one" not in admin_client.get(f"/admin/events/batch/{old.pk}/change/").content.decode()
    exported = b"".join(admin_client.get("/admin/events/event/export.csv"))
    assert b"young-one" in exported
    assert b"old-one" not in exported
    duplicate = Duplicate.objects.get()
    assert (
        "removed by retention" in admin_client.get(f"/admin/events/duplicate/{duplicate.pk}/change/").content.decode()
    )


@pytest.mark.skipif("connection.vendor != 'sqlite'")
def test_a_deep_page_does_not_read_what_lies_before_it(drain: Drain, client: Client) -> None:
    stored(drain, "1", days=11)
    stored(drain, *map(str, range(2, 9)), days=9)
    pruned()
    deep = client.get("/events?limit=3").json()["next"]
    with CaptureQueriesContext(
        connection,
    ) as queries:
        client.get(deep)
    [page] = [query["sql"] for query in queries if "ORDER BY" in query["sql"] and "events_event" in query["sql"]]
    assert page.count('"events_event"."id" >') == 1


# --- Batches, the log, the minutes ------------------------------------------------------------------------------------


def test_an_old_batch_goes_and_the_books_stay(drain: Drain, client: Client) -> None:
    old = stored(drain, "1", "2", "1", days=31)
    stored(drain, "1", "3", days=1)
    before = stats.books()
    assert pruned()["batches removed"] == 1
    assert client.get(f"/batches/{old.pk}").status_code == 404
    assert stats.books() == before
    row = Pruned.objects.get()
    assert (row.batches, row.received, row.unique, row.duplicates) == (1, 3, 2, 1)


def test_only_processed_batches_go() -> None:
    for status in ("pending", "failed", "discarded"):
        pending(event(status), at=days_ago(400), status=status)
    pruned()
    assert Batch.objects.count() == 3


def test_the_log_of_duplicates_and_the_minutes_go(drain: Drain) -> None:
    for days in (retention.MINUTES_DAYS + 1, 6):
        stored(drain, "1", "1", days=days)
    Delay.objects.update(minute=days_ago(retention.MINUTES_DAYS + 1))
    gone = pruned()
    assert gone["duplicates removed"] == 1
    assert Duplicate.objects.count() == 2
    assert TopicMinute.objects.count() == Minute.objects.count() == 1
    assert not Delay.objects.exists()
    assert TopicTotal.objects.values_list("unique", "duplicates").get() == (1, 3)


def test_a_log_that_is_off_is_emptied(drain: Drain, settings: Any) -> None:
    stored(drain, "1", "1", days=1)
    settings.DUPLICATE_LOG_DAYS = 0
    pruned()
    assert not Duplicate.objects.exists()


# --- Slices -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row takes a tenth of the time that a slice should take."""
    clock = [0.0]

    def oldest(events: Any, before: Any, size: int) -> Any:
        clock[0] += size * retention.SLICE_SECONDS / 10
        return whole(events, before, size)

    whole = retention._oldest
    monkeypatch.setattr(retention, "_oldest", oldest)
    monkeypatch.setattr(retention.time, "monotonic", lambda: clock[0])


@pytest.mark.usefixtures("slow")
def test_slices_shrink_to_the_time_they_should_take(drain: Drain) -> None:
    stored(drain, *map(str, range(150)), days=11)
    slices = [taken.rows for taken in prune() if taken.kind == "events expired"]
    assert slices[:3] == [100, 10, 10]


@pytest.mark.django_db(transaction=True)
def test_between_two_slices_others_may_write(drain: Drain, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "FIRST_SLICE_ROWS", 1)
    stored(drain, "1", "2", "3", days=11)
    first = next(prune())
    assert (first.kind, first.rows) == ("events expired", 1)
    assert not connection.in_atomic_block
    assert publish(event("4")).status_code == 202
    drain()
    assert wrong() == []
    assert Event.objects.filter(payload="").count() == 1
    assert pruned()["events expired"] == 2


# --- By whom ----------------------------------------------------------------------------------------------------------


def test_the_command_says_what_went(drain: Drain) -> None:
    stored(drain, *map(str, range(1234)), days=11)
    written = StringIO()
    call_command("prune", stdout=written)
    assert "1,234 events expired\n" in written.getvalue()
    written = StringIO()
    call_command("prune", stdout=written)
    assert written.getvalue() == "Nothing is old enough.\n"


def test_beat_starts_it_once_a_day() -> None:
    entry = app.conf.beat_schedule["prune"]
    assert entry["task"] in app.tasks
    assert entry["schedule"].remaining_estimate(timezone.now()) <= timedelta(days=1)


def test_the_task_makes_way_for_the_inbox_and_comes_back(drain: Drain, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(app, "send_task", sent.append)
    monkeypatch.setattr(tasks, "PRUNE_SECONDS", 0)
    monkeypatch.setattr(retention, "FIRST_SLICE_ROWS", 1)
    stored(drain, "1", "2", days=11)
    assert tasks.prune() == {"events expired": 1}
    assert sent == [retention.PRUNE]


# --- The books --------------------------------------------------------------------------------------------------------

keys = st.tuples(st.sampled_from("ab"), st.sampled_from("123"))
steps = st.one_of(
    st.tuples(st.just("publish"), st.lists(keys, min_size=1, max_size=5)),
    st.tuples(st.just("publish"), st.lists(keys, min_size=1, max_size=5)),
    st.tuples(st.just("drain"), st.none()),
    st.tuples(st.just("wait"), st.integers(1, 15)),
    st.tuples(st.just("prune"), st.integers(1, 6)),
    st.tuples(st.just("prune"), st.just(1000)),
)


class Service:
    """The real one, with a clock that is turned by hand, beside what it should hold in the plainest words."""

    def __init__(self) -> None:
        self.received = 0

    def publish(self, keys: list[tuple[str, str]]) -> None:
        pending(*(event(event_id, topic) for topic, event_id in keys), at=timezone.now())
        self.received += len(keys)

    def drain(self, _: None) -> None:
        known = set(Event.objects.values_list("topic", "event_id"))
        new = {
            (one["topic"], one["event_id"])
            for batch in Batch.objects.filter(processed_at=None)
            for one in json.loads(bytes(batch.body or b"[]").decode() or "[]")
            if isinstance(one, dict)
        }
        unique = stats.books().unique
        store.store_chunk()
        assert stats.books().pending == 0
        if new:
            assert stats.books().unique == unique + len(new - known)

    def wait(self, days: int) -> None:
        """So many days pass, which to the rows is the same as having come earlier."""
        past = timedelta(days=days)
        for model, names in (
            (Batch, ("accepted_at", "processed_at", "next_attempt_at")),
            (Event, ("received_at",)),
            (Duplicate, ("received_at",)),
        ):
            for row in model.objects.all():
                for name in names:
                    if value := getattr(row, name):
                        setattr(row, name, value - past)
                row.save()

    def prune(self, slices: int) -> None:
        for number, _ in enumerate(prune(), 1):
            self.check_books()
            if number == slices:
                break

    def check_books(self) -> None:
        assert stats.books().received == self.received
        assert wrong() == []

    def check(self) -> None:
        self.check_books()
        count = Client().get("/events?limit=1000").json()
        assert count["count"] == len(count["events"]) == Event.objects.exclude(payload="").count()
        young = Event.objects.filter(received_at__gt=days_ago(9.9))
        assert not young.filter(payload="").exists()


@given(st.lists(steps, min_size=3, max_size=10))
@hypothesis_settings(max_examples=10, deadline=None)
def test_the_books_are_exact_whatever_is_published_drained_and_pruned_in_whatever_order(
    steps: list[tuple[str, Any]],
) -> None:
    with transaction.atomic(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "FIRST_SLICE_ROWS", 3)
        service = Service()
        for name, detail in [*steps, ("drain", None), ("wait", 100), ("prune", 1000)]:
            getattr(service, name)(detail)
            service.check()
        # All is old enough now, and the books know it.
        assert not Event.objects.exists()
        assert not Batch.objects.exists()
        transaction.set_rollback(True)


# --- A dry run --------------------------------------------------------------------------------------------------------


def dry_run() -> list[str]:
    out = StringIO()
    call_command("prune", "--dry-run", stdout=out)
    return out.getvalue().splitlines()


def test_a_dry_run_says_what_prune_then_takes_away(drain: Drain) -> None:
    stored(drain, "1", "2", days=41)
    stored(drain, "1", days=31)
    stored(drain, "3", days=11)
    stored(drain, "4", days=1)
    said = dry_run()
    assert said[:4] == [
        "3 events would be expired",
        "2 keys would be removed",
        "2 batches would be removed",
        "1 duplicates would be removed",
    ]
    gone = pruned()
    assert said == [
        f"{rows} {kind.replace(' expired', ' would be expired').replace(' removed', ' would be removed')}"
        for kind, rows in gone.items()
    ]
    assert dry_run() == ["Nothing is old enough."]


def test_a_dry_run_only_reads(drain: Drain) -> None:
    stored(drain, "1", days=41)
    with CaptureQueriesContext(connection) as queries:
        dry_run()
    assert queries.captured_queries
    assert {query["sql"].split()[0] for query in queries.captured_queries} == {"SELECT"}
    assert Event.objects.exclude(payload="").count() == 1


def test_a_dry_run_stops_counting_when_its_time_is_up(drain: Drain, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(drain, "1", "2", "3", days=41)
    Batch.objects.update(processed_at=days_ago(41))
    monkeypatch.setattr(retention, "LARGEST_SLICE_ROWS", 2)
    monkeypatch.setattr(retention, "FIRST_COUNT_ROWS", 1)
    monkeypatch.setattr(retention, "COUNT_SECONDS", -1)
    said = dry_run()
    assert said[0] == "at least 2 events would be expired"
    assert "at least 1 batches would be removed" in said
