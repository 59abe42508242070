"""Claims about what open lists ask for: how many rows have come in since, counted through indexes and bounded."""

import re
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import F
from django.test import Client
from django.test.utils import CaptureQueriesContext

from events import store
from events.admin import newer
from events.models import Batch, Event
from tests.conftest import Publish, event

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]
#: Parameters of lists of events; each is served by another index.
FILTERS = (
    "", "topic=t1", "source=s1", "topic=t1&source=s1", "since=2020-01-01T00:00",
    "since=2020-01-01T00:00&until=2040-01-01T00:00", "since=2020-01-01T00:00&topic=t1", "batch_id=3",
)  # fmt: skip


def ask(client: Client, name: str, query: str, newer_than: object) -> Any:
    return client.get(f"/admin/events/{name}/?{query}&newer_than={newer_than}").json()


def newest_of(page: str) -> int:
    found = re.search(r'data-newest="(\d+)"', page)
    assert found
    return int(found[1])


def fill(publish: Publish, drain: Drain, batches: int = 1) -> None:
    first = Event.objects.count()
    for number in range(batches):
        some = [event(f"{first}-{number}-{n}", topic=f"t{n % 2}", source=f"s{n % 2}") for n in range(10)]
        publish([*some, some[0]])
    drain()


def test_a_list_says_how_many_have_come_in(admin_client: Client, publish: Publish, drain: Drain) -> None:
    fill(publish, drain)
    lists = ("event", "duplicate", "batch")
    seen = {name: newest_of(admin_client.get(f"/admin/events/{name}/").content.decode()) for name in lists}
    assert [ask(admin_client, name, "", seen[name])["count"] for name in lists] == [0, 0, 0]
    fill(publish, drain)
    assert [ask(admin_client, name, "", seen[name])["count"] for name in lists] == [10, 1, 1]


@pytest.mark.parametrize(("query", "count"), [("topic=t1", 5), ("topic=t1&source=s0", 0), ("event_id=nowhere", 0)])
def test_the_filters_of_the_list_count(
    admin_client: Client, publish: Publish, drain: Drain, query: str, count: int
) -> None:
    fill(publish, drain)
    assert ask(admin_client, "event", query, 0)["count"] == count


def test_the_next_question_goes_on_where_the_last_one_ended(
    admin_client: Client, publish: Publish, drain: Drain
) -> None:
    fill(publish, drain, batches=3)
    with patch.object(newer, "LOOKED_AT", 7):
        after, counts = 0, []
        while (answer := ask(admin_client, "event", "", after))["through"] > after:
            after = answer["through"]
            counts.append(answer["count"])
    assert sum(counts) == 30
    assert max(counts) <= 7


def test_not_more_are_counted_than_are_told(admin_client: Client, publish: Publish, drain: Drain) -> None:
    fill(publish, drain, batches=2)
    with patch.object(newer, "COUNTED", 5):
        answer = ask(admin_client, "event", "", 0)
    assert (answer["count"], answer["most"]) == (5, 5)


@pytest.mark.parametrize("number", ["x", "-1", "9" * 30, ""])
def test_a_number_that_is_none_is_no_error(admin_client: Client, publish: Publish, drain: Drain, number: str) -> None:
    fill(publish, drain)
    assert ask(admin_client, "event", "", number)["count"] == 0


@pytest.mark.parametrize("query", ["event/?p=older-5", "event/?since=x", "batch/?status=failed"])
def test_a_page_that_new_rows_are_not_on_top_of_offers_none(admin_client: Client, query: str) -> None:
    assert 'id="newer"' not in admin_client.get(f"/admin/events/{query}").content.decode()


def test_an_empty_list_offers_the_first_event(admin_client: Client, publish: Publish, drain: Drain) -> None:
    newest = newest_of(admin_client.get("/admin/events/event/").content.decode())
    fill(publish, drain)
    assert ask(admin_client, "event", "", newest)["count"] == 10


def test_the_next_event_is_offered_however_far_its_id_is(admin_client: Client, publish: Publish, drain: Drain) -> None:
    newest = newest_of(admin_client.get("/admin/events/event/").content.decode())
    fill(publish, drain)
    Event.objects.update(id=F("id") + 10 * newer.LOOKED_AT)
    assert ask(admin_client, "event", "", newest)["count"] == 10


def test_who_may_not_see_the_list_is_told_nothing(client: Client) -> None:
    client.force_login(User.objects.create_user("guest", is_staff=True))
    assert client.get("/admin/events/event/?newer_than=0").status_code == 403


@pytest.mark.skipif(connection.vendor != "sqlite", reason="reads SQLite's query plans")
@pytest.mark.parametrize("query", FILTERS)
def test_it_reads_only_the_ids_in_question(admin_client: Client, publish: Publish, drain: Drain, query: str) -> None:
    fill(publish, drain, batches=2)
    with CaptureQueriesContext(connection) as queries:
        ask(admin_client, "event", query, 3)
    [sql] = [found["sql"] for found in queries if f'"{Event._meta.db_table}"."id" <=' in found["sql"]]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
        [(*_, step)] = cursor.fetchall()
    assert re.search(r"(id|rowid)>\? AND (id|rowid)<\?\)", step), step


def test_its_cost_is_three_statements_beside_those_of_the_session(
    admin_client: Client, publish: Publish, drain: Drain
) -> None:
    fill(publish, drain)
    with CaptureQueriesContext(connection) as queries:
        ask(admin_client, "batch", "", Batch.objects.order_by("pk").values_list("pk", flat=True)[0])
    assert len([query for query in queries if "events_" in query["sql"]]) <= 3
