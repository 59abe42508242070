"""GET /events?payload.user_id=123, and order=desc: every match once, both ways, however little a page looks at."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import count
from typing import Any
from unittest.mock import patch

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from events import keys, payload_search
from events.api import events as listing
from events.models import Event
from tests.test_events import NOON, all_ids, backwards, forwards, ids, page, stored, streamed

#: How many events are stored, and by which their numbers in the payload repeat.
EVENTS, USERS = 400, 7


def stored_with_payloads(number: int = EVENTS) -> None:
    stored(number, at=moment)
    for row in Event.objects.all():
        n = int(row.event_id)
        row.payload = json.dumps({"user": {"id": n % USERS}, "even": n % 2 == 0, "n": n})
        row.save(update_fields=["payload"])


def moment(number: int) -> datetime:
    """Many share one, and the order of acceptance is not that of storing."""
    return NOON + timedelta(seconds=4 - number % 5)


class Clock:
    """Tells that a step took `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._moments = count()
        self._seconds = seconds

    def __call__(self) -> float:
        return next(self._moments) * self._seconds


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a step of 50 events the time is over."""
    monkeypatch.setattr(payload_search, "monotonic", Clock(payload_search.SEARCH_SECONDS))


@pytest.fixture
def indexed(transactional_db: None) -> Iterator[None]:
    payload_search.create_index(("user", "id"))
    yield
    payload_search.drop_index(("user", "id"))


FILTERS: list[dict[str, Any]] = [
    {},
    {"topic": "a"},
    {"source": "y", "batch_id": 3},
    {"event_id": "17"},
    {"since": NOON + timedelta(seconds=1)},
    {"until": NOON + timedelta(seconds=3), "topic": "b"},
]


def expected(filters: dict[str, Any], order: str, user: int = 3) -> list[int]:
    by_time = "since" in filters or "until" in filters
    numbers = sorted(range(EVENTS), key=lambda n: (moment(n), n) if by_time else n, reverse=order == "desc")
    return [
        n
        for n in numbers
        if n % USERS == user
        and filters.get("topic", "ab"[n % 2]) == "ab"[n % 2]
        and filters.get("source", "xyz"[n % 3]) == "xyz"[n % 3]
        and filters.get("batch_id", n // 100 + 1) == n // 100 + 1
        and filters.get("event_id", str(n)) == str(n)
        and filters.get("since", moment(n)) <= moment(n)
        and moment(n) < filters.get("until", moment(n) + timedelta(1))
    ]


def asked(filters: dict[str, Any], order: str) -> dict[str, Any]:
    texts = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in filters.items()}
    return texts | {"payload.user.id": "3", "order": order}


def check_every_match_comes_once(client: Client, filters: dict[str, Any], order: str) -> None:
    wanted = expected(filters, order)
    pages = forwards(client, limit=5, **asked(filters, order))
    assert all_ids(pages) == wanted
    assert all_ids(backwards(client, pages[-1])) == wanted
    lines = streamed(client, "application/x-ndjson", **asked(filters, order)).splitlines()
    assert [int(json.loads(line)["event_id"]) for line in lines] == wanted
    rows = streamed(client, "text/csv", **asked(filters, order)).decode().splitlines()
    assert len(rows) == len(wanted) + 1


@pytest.mark.django_db
@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("filters", FILTERS, ids=lambda filters: "+".join(filters) or "all")
def test_without_an_index_every_match_comes_once_in_both_directions(
    filters: dict[str, Any], order: str, client: Client
) -> None:
    stored_with_payloads()
    check_every_match_comes_once(client, filters, order)


@pytest.mark.django_db
@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("filters", FILTERS, ids=lambda filters: "+".join(filters) or "all")
def test_also_where_the_time_is_over_after_every_step(
    filters: dict[str, Any], order: str, client: Client, hurried: None
) -> None:
    stored_with_payloads()
    check_every_match_comes_once(client, filters, order)


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("filters", FILTERS, ids=lambda filters: "+".join(filters) or "all")
def test_with_an_index_every_match_comes_once_in_both_directions(
    filters: dict[str, Any], order: str, client: Client, indexed: None
) -> None:
    stored_with_payloads()
    check_every_match_comes_once(client, filters, order)


# --- What the answer says ---------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_without_an_index_it_says_so_and_does_not_count(client: Client) -> None:
    stored_with_payloads(20)
    answer = page(client, **{"payload.user.id": "3"})
    assert ids(answer) == [3, 10, 17]
    assert answer["count"] is None
    assert answer["search"] == {
        "indexed": False,
        "complete": True,
        "hint": "manage.py index payload.user.id makes it fast",
    }


def test_with_an_index_it_says_so_and_counts(client: Client, indexed: None) -> None:
    stored_with_payloads(20)
    answer = page(client, **{"payload.user.id": "3"})
    assert (ids(answer), answer["count"]) == ([3, 10, 17], 3)
    assert answer["search"] == {"indexed": True, "complete": True, "hint": None}


def test_one_index_serves_and_the_other_values_are_looked_for_in_what_it_finds(client: Client, indexed: None) -> None:
    stored_with_payloads(40)
    with CaptureQueriesContext(connection) as statements:
        answer = page(client, **{"payload.user.id": "3", "payload.even": "true"})
    assert ids(answer) == [10, 24, 38]
    assert answer["search"]["hint"] == "manage.py index payload.even makes it fast"
    looked_at = [
        each["sql"]
        for each in statements
        if "events_event" in each["sql"]
        and ("even\"'" in each["sql"] or "-> 'even'" in each["sql"] or "->> 'even'" in each["sql"])
    ]
    assert len(looked_at) == 1
    served = Event.objects.filter(event_id__in=[3, 10, 17, 24, 31, 38]).order_by("pk").values_list("pk", flat=True)
    assert ",".join(map(str, served)) in looked_at[0].replace(", ", ",")


@pytest.mark.django_db
def test_who_asks_for_no_payload_is_told_nothing_of_searches(client: Client) -> None:
    stored(1)
    assert "search" not in page(client)


@pytest.mark.django_db
def test_several_values_must_all_be_there(client: Client) -> None:
    stored_with_payloads(40)
    assert ids(page(client, **{"payload.user.id": "3", "payload.even": "true"})) == [10, 24, 38]
    assert ids(page(client, **{"payload.user.id": "3", "payload.even": "true", "payload.n": "25"})) == []


@pytest.mark.django_db
def test_when_the_time_is_over_the_next_page_goes_on_behind_what_was_looked_at(client: Client, hurried: None) -> None:
    stored_with_payloads(120)
    pages = [page(client, **{"payload.n": "110"})]
    while pages[-1]["next"]:
        pages.append(page(client, pages[-1]["next"]))
    assert [ids(each) for each in pages] == [[], [], [110]]
    assert [each["search"]["complete"] for each in pages] == [False, False, True]
    assert [ids(each) for each in backwards(client, pages[1])] == [[], []]


@pytest.mark.django_db
def test_a_full_page_looks_no_further(client: Client) -> None:
    stored_with_payloads(200)
    with CaptureQueriesContext(connection) as statements:
        first = page(client, limit=1, **{"payload.user.id": "3"})
    assert ids(first) == [3]
    assert first["search"]["complete"]
    assert len([statement for statement in statements if "json" in statement["sql"].lower()]) <= 2
    assert ids(page(client, first["next"])) == [10]


@pytest.mark.django_db
def test_steps_grow_while_they_are_fast_and_shrink_when_they_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def noting(some: list[int], conditions: Any) -> set[int]:
        steps.append(len(some))
        return set()

    monkeypatch.setattr(payload_search, "matching", noting)
    for seconds, expected_steps in ((0.0, [50, 100, 200, 400, 250]), (0.2, [50, 25, 12])):
        steps.clear()
        monkeypatch.setattr(payload_search, "monotonic", Clock(seconds))
        candidates = iter([(n, NOON) for n in range(1000)])
        looked = payload_search.search(candidates, [], enough=1)
        assert steps[: len(expected_steps)] == expected_steps
        assert looked.more is (seconds > 0)
        assert looked.count == sum(steps)


@pytest.mark.django_db
def test_a_search_takes_no_payload_that_does_not_match(client: Client) -> None:
    stored_with_payloads(50)
    with (
        patch.object(listing, "read_payloads", wraps=listing.read_payloads) as read,
        CaptureQueriesContext(connection) as statements,
    ):
        page(client, **{"payload.n": "7"})
    assert [len(call.args[0]) for call in read.call_args_list] == [1]
    assert not [each for each in statements if '"payload"' in each["sql"].partition(" FROM ")[0]]


@pytest.mark.django_db
def test_what_a_stream_may_is_asked_also_while_it_finds_nothing(
    client: Client, hurried: None, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.REQUIRE_API_KEY = True
    monkeypatch.setattr(listing, "ASKED_EVERY_SECONDS", 0)
    stored_with_payloads(200)
    row, key = keys.create("reader", may_publish=False, may_read=True)
    headers = {"Authorization": f"Api-Key {key}", "Accept": "application/x-ndjson"}
    answer: Any = client.get("/events", {"payload.n": "none"}, headers=headers)
    keys.revoke([row.prefix])
    with pytest.raises(listing.NoLongerAllowed), CaptureQueriesContext(connection) as statements:
        b"".join(answer.streaming_content)
    assert len([each for each in statements if "json" in each["sql"].lower()]) <= 2


@pytest.mark.django_db
def test_a_key_that_is_bound_to_topics_finds_only_theirs(client: Client, settings: Settings) -> None:
    settings.REQUIRE_API_KEY = True
    stored_with_payloads(40)
    _, key = keys.create("reader", may_publish=False, may_read=True, topics=["b"])
    answer = client.get("/events", {"payload.user.id": "3"}, headers={"Authorization": f"Api-Key {key}"})
    assert ids(answer.json()) == [3, 17, 31]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("payload.=1", "payload. cannot be searched by: name the fields"),
        ("payload.a..b=1", "payload.a..b cannot be searched by: name the fields"),
        ("payload.a%22b=1", "quote"),
        ("payload.a=%00", "payload.a must not be compared with U+0000"),
        ("payload.a=%22%5Cu0000%22", "payload.a must not be compared with U+0000"),
        ("payload.a=1&payload.a=2", "payload.a is given 2 times"),
        ("payload=1", "payload is not a parameter; there are topic, "),
        ("Payload.a=1", "Payload.a is not a parameter"),
        ("&".join(f"payload.a{n}=1" for n in range(11)), "at most 10"),
        ("order=down", "order must be asc"),
        ("order=", "order must be asc"),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
def test_what_cannot_be_searched_by_is_a_400_that_says_why(
    parameters: str, said: str, accept: str, client: Client
) -> None:
    answer = client.get(f"/events?{parameters}", headers={"Accept": accept})
    assert answer.status_code == 400
    assert said in json.loads(answer.content)["detail"]


@pytest.mark.django_db
@pytest.mark.parametrize("number", ["9223372036854775808", "-9223372036854775809", "1" * 30])
def test_numbers_that_no_integer_holds_are_found(number: str, client: Client) -> None:
    stored(1)
    Event.objects.update(payload=f'{{"n":{number}}}')
    assert ids(page(client, **{"payload.n": number})) == [0]


# --- Newest first -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("filters", FILTERS, ids=lambda filters: "+".join(filters) or "all")
def test_newest_first_is_the_list_the_other_way_round(filters: dict[str, Any], client: Client) -> None:
    stored(EVENTS, at=moment)
    texts = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in filters.items()}
    oldest_first = all_ids(forwards(client, limit=37, **texts))
    pages = forwards(client, limit=37, order="desc", **texts)
    assert all_ids(pages) == oldest_first[::-1]
    assert all_ids(backwards(client, pages[-1])) == oldest_first[::-1]
    assert {each["count"] for each in pages} == {len(oldest_first)}
    lines = streamed(client, "application/x-ndjson", order="desc", **texts).splitlines()
    assert [int(json.loads(line)["event_id"]) for line in lines] == oldest_first[::-1]


@pytest.mark.django_db
def test_a_cursor_of_the_other_order_is_refused(client: Client) -> None:
    stored(3)
    for order, other in (("asc", "desc"), ("desc", "asc")):
        following = page(client, limit=1, order=order)["next"]
        answer = client.get(following.replace(f"order={order}", f"order={other}"))
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith(f"cursor is of a list with order={order}")
