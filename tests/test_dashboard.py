"""Claims about the dashboard: its figures are right, it counts no events, and it says what is wrong."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from events import dashboard, delays, state, store
from events.models import Batch, Delay, Duplicate, Event, Heartbeat, Minute, SourceTotal, TopicMinute
from tests.conftest import Publish, event

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]
HOUR, DAY = dashboard.WINDOWS["hour"], dashboard.WINDOWS["day"]
NOON = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _broker_answers() -> Any:
    dashboard._asked.answer = state.Part("broker", True, "answers")
    dashboard._asked.at = float("inf")
    yield
    dashboard._asked.answer = None


def test_the_books_are_the_books(publish: Publish, drain: Drain) -> None:
    publish([event("1"), event("2"), event("1")])
    drain()
    publish([event("3")])
    books = dashboard.snapshot(HOUR).books
    assert (books.received, books.unique, books.duplicates, books.pending) == (4, 2, 1, 1)


def test_minutes_of_all_topics_fill_the_bars() -> None:
    Minute.objects.create(minute=NOON.replace(second=0), unique=3, duplicates=1)
    Minute.objects.create(minute=NOON.replace(second=0) - timedelta(minutes=59), unique=7)
    Minute.objects.create(minute=NOON.replace(second=0) - timedelta(minutes=60), unique=100)
    with patch("django.utils.timezone.now", return_value=NOON):
        series = dashboard.snapshot(HOUR).series
    assert (len(series.times), series.times[-1]) == (60, NOON.replace(second=0))
    assert (series.unique[0], series.unique[-1], sum(series.unique)) == (7, 3, 10)
    assert (series.duplicates[-1], series.share[-1], series.share[1]) == (1, 0.25, None)


def test_the_bars_of_a_day_are_events_a_minute_and_the_last_one_counts_the_minutes_that_have_begun() -> None:
    at = NOON.replace(minute=46, second=10)
    Minute.objects.create(minute=NOON.replace(minute=45, second=0), unique=10)
    Minute.objects.create(minute=NOON.replace(minute=30, second=0), unique=30)
    with patch("django.utils.timezone.now", return_value=at):
        series = dashboard.snapshot(DAY).series
    assert (len(series.times), series.times[-1]) == (96, NOON.replace(minute=45, second=0))
    assert series.unique[-2:] == [2, 5]


def test_percentiles_are_read_off_the_delays() -> None:
    minute = NOON.replace(second=0)
    Delay.objects.create(minute=minute, milliseconds=delays.step(30), events=98)
    Delay.objects.create(minute=minute, milliseconds=delays.step(1200), events=2)
    with patch("django.utils.timezone.now", return_value=NOON):
        now = dashboard.snapshot(HOUR)
    assert 0.022 < (now.p50 or 0) <= 0.033
    assert 1 < (now.p99 or 0) <= 1.5
    assert now.series.p50[-1] == now.p50
    assert now.series.p50[0] is None


@pytest.mark.parametrize("milliseconds", [0, 9.9, 10, 333, 86_400_000, 10**12])
def test_every_delay_falls_into_a_step(milliseconds: float) -> None:
    assert delays.step(milliseconds) in delays.STEPS


def test_what_is_stored_is_counted_by_source_minute_and_delay(publish: Publish, drain: Drain) -> None:
    publish([event("1", source="a"), event("1", source="b"), event("1", source="b", payload={"n": 2})])
    drain()
    sources = SourceTotal.objects.order_by("source").values_list("source", "unique", "duplicates", "differing")
    assert list(sources) == [("a", 1, 0, 0), ("b", 0, 2, 1)]
    assert list(Minute.objects.values_list("unique", "duplicates")) == [(1, 2)]
    assert [row.events for row in Delay.objects.all()] == [3]


def test_sources_come_by_their_duplicates_and_those_that_reuse_ids_by_how_often() -> None:
    for name, duplicates, differing in (("few", 1, 1), ("many", 9, 0), ("none", 0, 0)):
        SourceTotal.objects.create(
            source=name, unique=10, duplicates=duplicates, differing=differing, last_seen=timezone.now()
        )
    now = dashboard.snapshot(HOUR)
    assert [total.name for total in now.sources] == ["many", "few"]
    assert [(total.name, total.differing) for total in now.differing] == [("few", 1)]


def test_a_topic_has_its_last_hour_as_a_line() -> None:
    minute = NOON.replace(second=0)
    TopicMinute.objects.create(topic="t", minute=minute, unique=2, duplicates=1)
    TopicMinute.objects.create(topic="t", minute=minute - timedelta(minutes=60), unique=50)
    TopicMinute.objects.create(topic="other", minute=minute, unique=50)
    line = dashboard.sparks(["t", "silent"], NOON)
    assert line["t"] == [0] * 59 + [3]
    assert line["silent"] == [0] * 60


def heartbeats() -> None:
    for part in (state.WORKER, state.BEAT):
        Heartbeat.objects.update_or_create(part=part, name="here", defaults={"seen_at": timezone.now()})


def test_all_is_well_when_every_part_is_there_and_nothing_is_late_or_dead() -> None:
    heartbeats()
    assert dashboard.snapshot(HOUR).well


@pytest.mark.parametrize("part", [state.WORKER, state.BEAT])
def test_a_part_that_said_nothing_for_a_while_is_gone(part: str) -> None:
    heartbeats()
    long_ago = timezone.now() - timedelta(seconds=state.GONE_SECONDS + 1)
    Heartbeat.objects.filter(part=part).update(seen_at=long_ago)
    now = dashboard.snapshot(HOUR)
    assert not now.well
    assert [found.name for found in now.parts if not found.well] == ["workers" if part == state.WORKER else part]


def test_a_dead_letter_and_an_old_inbox_need_somebody() -> None:
    heartbeats()
    old = timezone.now() - timedelta(seconds=state.LATE_SECONDS + 1)
    batch = Batch.objects.create(accepted_at=old, next_attempt_at=old, received=1, body=b"[]", size=2)
    now = dashboard.snapshot(HOUR)
    assert now.late
    assert not now.well
    Batch.objects.filter(pk=batch.pk).update(status="failed")
    now = dashboard.snapshot(HOUR)
    assert not now.late
    assert (now.failed_batches, now.books.failed, now.well) == (1, 1, False)


def test_state_never_raises() -> None:
    with (
        patch("events.state.connection.cursor", side_effect=RuntimeError("database away")),
        patch("events.state.Heartbeat.objects.filter", side_effect=RuntimeError("database away")),
        patch("events.state.inbox.due_since", side_effect=RuntimeError("database away")),
        patch("events.state.current_app.connection_for_write", side_effect=RuntimeError("broker away")),
    ):
        assert state.oldest_pending_seconds() is None
        for ask in (state.database, state.broker, state.workers, state.beat):
            assert not ask().well
        state.note(state.WORKER, "here")


def test_a_heartbeat_is_written_once_in_a_while() -> None:
    with patch.dict(state._silent_until, clear=True):
        state.note(state.WORKER, "here")
        Heartbeat.objects.update(seen_at=NOON)
        state.note(state.WORKER, "here")
        assert Heartbeat.objects.get().seen_at == NOON
        state._silent_until.clear()
        state.note(state.WORKER, "here")
        assert Heartbeat.objects.get().seen_at > NOON


# --- The page ---------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_figures_and_refreshes_from_its_own_address(
    admin_client: Client, publish: Publish, drain: Drain
) -> None:
    publish([event(str(n)) for n in range(1500)])
    drain()
    for address in ("/admin/", "/admin/live", "/admin/?window=day", "/admin/live?window=nonsense"):
        page = admin_client.get(address).content.decode()
        assert re.search(r'data-figure="unique">1,500<', page), address
    assert 'data-url="/admin/live?window=day"' in admin_client.get("/admin/?window=day").content.decode()


def test_names_from_outside_are_escaped(admin_client: Client, publish: Publish, drain: Drain) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    publish([event("1", topic=evil, source=evil), event("1", topic=evil, source=evil, payload={"n": evil})])
    drain()
    page = admin_client.get("/admin/").content.decode()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_strangers_are_sent_to_the_login(client: Client) -> None:
    for address in ("/admin/", "/admin/live"):
        assert client.get(address).headers["Location"].startswith("/admin/login/")


def test_staff_who_may_not_see_events_see_no_figures(client: Client) -> None:
    user = User.objects.create_user("guest", is_staff=True)
    client.force_login(user)
    assert "data-figure" not in client.get("/admin/").content.decode()
    assert client.get("/admin/live").status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_event"))
    assert "data-figure" in client.get("/admin/").content.decode()


def test_it_reads_no_events_and_not_more_for_more_of_them(admin_client: Client, publish: Publish, drain: Drain) -> None:
    publish([event("0", source="s"), event("0", source="s", payload={})])
    drain()
    admin_client.get("/admin/live")
    with CaptureQueriesContext(
        connection,
    ) as few:
        admin_client.get("/admin/live")
    publish([event(str(n)) for n in range(500)])
    drain()
    with CaptureQueriesContext(connection) as many:
        admin_client.get("/admin/live")
    assert len(many) == len(few) <= 16
    for query in many:
        for model in (Event, Duplicate):
            assert f'FROM "{model._meta.db_table}"' not in query["sql"]
