"""GET /events: every match once, page by page or as a stream, each payload to the byte."""

import csv
import gc
import io
import json
import weakref
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from django.db import OperationalError, connection, transaction
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from httpx._decoders import LineDecoder
from hypothesis import given, settings
from hypothesis import strategies as st
from rest_framework.exceptions import ValidationError

from events import keys, payloads, store
from events.api import events as listing
from events.api import export
from events.models import Event, TopicTotal
from tests.conftest import Publish, event

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]
NOON = datetime(2025, 10, 21, 12, tzinfo=UTC)


def stored(count: int, *, at: Callable[[int], datetime] = lambda _: NOON) -> None:
    """Fills the table: topics a and b, sources x, y and z, in batches of a hundred."""
    rows = [
        Event(
            topic="ab"[number % 2],
            event_id=str(number),
            source="xyz"[number % 3],
            timestamp=NOON,
            payload="{}",
            received_at=at(number),
            batch_id=number // 100 + 1,
        )
        for number in range(count)
    ]
    Event.objects.bulk_create(rows)
    for topic in "ab":
        total = sum(row.topic == topic for row in rows)
        TopicTotal.objects.create(topic=topic, unique=total, first_seen=NOON, last_seen=NOON)


def page(client: Client, url: str = "/events", **parameters: Any) -> dict[str, Any]:
    answer = client.get(url, parameters or None)
    assert answer.status_code == 200, answer.content
    return answer.json()  # type: ignore[no-any-return]


def ids(page: dict[str, Any]) -> list[int]:
    return [int(event["event_id"]) for event in page["events"]]


def forwards(client: Client, **parameters: Any) -> list[dict[str, Any]]:
    pages = [page(client, **parameters)]
    while pages[-1]["next"]:
        pages.append(page(client, pages[-1]["next"]))
    return pages


def backwards(client: Client, last: dict[str, Any]) -> list[dict[str, Any]]:
    pages = [last]
    while pages[-1]["previous"]:
        pages.append(page(client, pages[-1]["previous"]))
    return pages[::-1]


def all_ids(pages: list[dict[str, Any]]) -> list[int]:
    return [number for page in pages for number in ids(page)]


def streamed(client: Client, accept: str, **parameters: Any) -> bytes:
    answer = client.get("/events", parameters, headers={"Accept": accept})
    assert answer.status_code == 200
    return b"".join(answer.streaming_content)  # type: ignore[attr-defined]


@pytest.mark.parametrize("since", [{}, {"since": "2000-01-01T00:00:00Z"}])
def test_a_page_ends_early_where_payloads_are_large(
    client: Client, monkeypatch: pytest.MonkeyPatch, since: dict[str, str]
) -> None:
    stored(7)
    Event.objects.update(payload='{"n":1}')
    monkeypatch.setattr(listing, "LARGEST_BYTES", 20)
    pages = forwards(client, limit=5, **since)
    assert [len(each["events"]) for each in pages] == [2, 2, 2, 1]
    assert all_ids(pages) == list(range(7))
    assert all_ids(backwards(client, pages[-1])) == list(range(7))
    assert len(streamed(client, "application/x-ndjson", **since).splitlines()) == 7


def test_a_stream_is_sent_in_pieces(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(7)
    whole = streamed(client, "text/csv")
    monkeypatch.setattr(listing, "PIECE", 10)
    answer = client.get("/events", headers={"Accept": "text/csv"})
    pieces = list(answer.streaming_content)  # type: ignore[attr-defined]
    assert max(map(len, pieces)) == 10
    assert b"".join(pieces) == whole


@pytest.mark.parametrize("since", [{}, {"since": "2000-01-01T00:00:00Z"}])
def test_a_page_that_ends_by_its_bytes_at_the_last_event_has_no_next(client: Client, since: dict[str, str]) -> None:
    stored(2)
    with patch.object(listing, "LARGEST_BYTES", 1):
        pages = forwards(client, limit=1, **since)
    assert [ids(each) for each in pages] == [[0], [1]]


def test_a_large_payload_is_read_alone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, and whatever statement found them: none is read but those that are sent."""
    stored(20)
    Event.objects.update(payload='{"text":"' + "x" * 100 + '"}')
    monkeypatch.setattr(listing, "LARGEST_BYTES", 150)
    read = []
    original = payloads.read_payloads

    def noting(*arguments: Any, **named: Any) -> Any:
        found, cut = original(*arguments, **named)
        read.append(len(found))
        return found, cut

    monkeypatch.setattr(listing, "read_payloads", noting)
    for parameters in ({}, {"event_id": "3"}, {"since": "2000-01-01T00:00:00Z", "topic": "a"}):
        read.clear()
        with CaptureQueriesContext(connection) as statements:
            assert len(page(client, **parameters)["events"]) == 1
        assert read == [1]
        for statement in statements:
            assert "ORDER BY" not in statement["sql"] or "payload" not in statement["sql"]


def test_a_page_is_gone_as_soon_as_it_is_sent() -> None:
    """Without waiting for the collector, which may come when there are dozens of such pages."""
    gc.disable()
    try:
        view = listing.EventsView.as_view()
        answer: Any = view(RequestFactory().get("/events"))
        gone = weakref.ref(answer)
        del answer
        assert gone() is None
    finally:
        gc.enable()


def test_payloads_come_in_the_order_asked_for_and_end_where_there_is_no_room() -> None:
    stored(6)
    Event.objects.update(payload='{"n":1}')
    numbers = list(Event.objects.order_by("id").values_list("id", flat=True))
    asked = [numbers[n] for n in (4, 1, 5, 0)]
    found, cut = payloads.read_payloads(asked, most=20)
    assert (set(found), cut) == (set(asked[:2]), True)
    found, cut = payloads.read_payloads(asked, most=28)
    assert (sorted(found), cut) == (sorted(asked), False)
    found, cut = payloads.read_payloads(asked, most=1)
    assert (list(found), cut) == (asked[:1], True)


def test_what_retention_takes_while_a_page_is_read_is_passed_over(client: Client) -> None:
    stored(4)
    first, second, *_ = Event.objects.order_by("id")
    Event.objects.filter(pk=first.pk).update(payload="")
    second.delete()
    assert ids(page(client)) == [2, 3]
    assert len(streamed(client, "application/x-ndjson").splitlines()) == 2


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/csv"])
def test_the_head_of_a_stream_reads_no_event(client: Client, accept: str) -> None:
    stored(7)
    with CaptureQueriesContext(connection) as queries:
        answer = client.head("/events", headers={"Accept": accept})
        assert b"".join(answer.streaming_content) == b""  # type: ignore[attr-defined]
    assert answer.status_code == 200
    assert queries.captured_queries == []


# --- A page -----------------------------------------------------------------------------------------------------------


def test_an_empty_service_has_no_events(client: Client) -> None:
    assert page(client) == {"count": 0, "next": None, "previous": None, "events": []}


def test_an_event_is_listed_with_all_its_fields(client: Client, publish: Publish, drain: Drain) -> None:
    batch = publish(event("1", timestamp="2025-10-21T16:30:00+02:00", payload={"z": 1, "a": 2})).json()["batch_id"]
    drain()
    row = Event.objects.get()
    assert page(client)["events"] == [
        {
            "id": row.pk,
            "topic": "t",
            "event_id": "1",
            "source": "test",
            "timestamp": "2025-10-21T14:30:00Z",
            "payload": {"z": 1, "a": 2},
            "received_at": msgspec.to_builtins(row.received_at),
            "batch_id": batch,
        }
    ]


def test_a_page_has_100_events_unless_asked_otherwise(client: Client) -> None:
    stored(101)
    assert ids(page(client)) == list(range(100))


@pytest.mark.parametrize(("count", "more"), [(9, False), (10, False), (11, True)])
def test_there_is_a_next_page_only_if_it_has_events(count: int, more: bool, client: Client) -> None:
    stored(count)
    assert bool(page(client, limit=10)["next"]) is more


def test_the_first_page_has_no_previous_one(client: Client) -> None:
    stored(20)
    assert page(client, limit=10)["previous"] is None


def test_the_links_lead_to_this_service(client: Client) -> None:
    stored(3)
    assert page(client, limit=1)["next"].startswith("http://testserver/events?limit=1&cursor=")


# --- Pages ------------------------------------------------------------------------------------------------------------


def test_2500_events_come_once_each_with_a_limit_of_700(client: Client) -> None:
    stored(2500)
    pages = forwards(client, limit=700)
    assert [len(page["events"]) for page in pages] == [700, 700, 700, 400]
    assert all_ids(pages) == list(range(2500))
    assert {page["count"] for page in pages} == {2500}


def test_the_way_back_gives_the_same_pages(client: Client) -> None:
    stored(2500)
    pages = forwards(client, limit=700)
    assert [ids(page) for page in backwards(client, pages[-1])] == [ids(page) for page in pages]


FILTERS: list[dict[str, Any]] = [
    {},
    {"topic": "a"},
    {"source": "y"},
    {"batch_id": 3},
    {"event_id": "17"},
    {"topic": "b", "source": "z"},
    {"topic": "a", "event_id": "18"},
    {"topic": "a", "event_id": "17"},
    {"source": "x", "batch_id": 2},
    {"topic": "none"},
]
WINDOWS: list[dict[str, Any]] = [
    {},
    {"since": NOON + timedelta(seconds=1)},
    {"until": NOON + timedelta(seconds=3)},
    {"since": NOON + timedelta(seconds=1), "until": NOON + timedelta(seconds=3)},
]


@pytest.mark.parametrize("window", WINDOWS, ids=["ever", "since", "until", "since until"])
@pytest.mark.parametrize("filters", FILTERS, ids=lambda filters: "+".join(filters) or "all")
def test_every_match_and_nothing_else_comes_once_in_both_directions(
    filters: dict[str, Any], window: dict[str, Any], client: Client
) -> None:
    """Many share a moment, and the order of acceptance is not that of storing."""
    moments = [NOON + timedelta(seconds=4 - number % 5) for number in range(400)]
    stored(400, at=lambda number: moments[number])
    order = sorted(range(400), key=lambda number: (moments[number], number)) if window else range(400)
    wanted = [
        number
        for number in order
        if filters.get("topic", "ab"[number % 2]) == "ab"[number % 2]
        and filters.get("source", "xyz"[number % 3]) == "xyz"[number % 3]
        and filters.get("batch_id", number // 100 + 1) == number // 100 + 1
        and filters.get("event_id", str(number)) == str(number)
        and window.get("since", moments[number]) <= moments[number]
        and moments[number] < window.get("until", moments[number] + timedelta(1))
    ]
    asked = filters | {name: moment.isoformat() for name, moment in window.items()}
    pages = forwards(client, limit=37, **asked)
    assert all_ids(pages) == wanted
    assert {page["count"] for page in pages} == {len(wanted)}
    assert all_ids(backwards(client, pages[-1])) == wanted
    lines = streamed(client, "application/x-ndjson", **asked).splitlines()
    assert [int(json.loads(line)["event_id"]) for line in lines] == wanted


def test_thousands_accepted_at_one_moment_come_once_each(client: Client) -> None:
    stored(3000)
    pages = forwards(client, limit=700, since=NOON.isoformat())
    assert all_ids(pages) == list(range(3000))
    assert all_ids(backwards(client, pages[-1])) == list(range(3000))


def test_since_includes_its_moment_and_until_does_not(client: Client) -> None:
    stored(3, at=lambda number: NOON + timedelta(microseconds=number))
    moment = (NOON + timedelta(microseconds=1)).isoformat()
    assert ids(page(client, since=moment)) == [1, 2]
    assert ids(page(client, until=moment)) == [0]


def test_events_stored_meanwhile_come_on_the_pages_that_follow(client: Client, publish: Publish, drain: Drain) -> None:
    publish([event(str(n)) for n in range(3)])
    drain()
    first = page(client, limit=2)
    publish([event(str(n)) for n in range(3, 5)])
    drain()
    second = page(client, first["next"])
    assert ids(first) + ids(second) == [0, 1, 2, 3]
    assert second["count"] == 5


@pytest.mark.parametrize(
    "since",
    [
        "2025-10-21T14:00:00+02:00",
        "2025-10-21 14:00:00+0200",
        "20251021T1400+02",
        "2025-10-21T12:00:00Z",
        # Here the space stands between date and time.
        "2025-10-21 12:00",
        "20251021 1200",
    ],
)
def test_a_plus_sign_that_came_as_a_space_is_understood(since: str, client: Client) -> None:
    stored(1)
    later = since.replace(":00", ":01", 1) if ":" in since else since.replace("00", "01", 1)
    assert page(client, f"/events?since={since}")["count"] == 1
    assert page(client, f"/events?since={later}")["count"] == 0


def test_a_page_costs_the_same_statements_whatever_its_size(client: Client) -> None:
    stored(300)
    counts = set()
    for limit in (1, 250):
        with CaptureQueriesContext(connection) as statements:
            page(client, limit=limit, source="x")
        counts.add(len(statements))
    assert len(counts) == 1


@pytest.mark.parametrize("parameters", [{}, {"topic": "a"}])
def test_counting_all_or_a_topic_reads_no_event(parameters: dict[str, str], client: Client) -> None:
    stored(10)
    with CaptureQueriesContext(connection) as statements:
        page(client, **parameters)
    assert not any("COUNT" in statement["sql"] for statement in statements)


def test_a_question_with_a_moment_is_answered_in_utc(client: Client) -> None:
    stored(1)
    assert page(client, since="2025-10-21T12:00:00", until="2025-10-21T12:00:01")["count"] == 1


# --- Wrong questions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("limit=1.0", "limit"),
        ("limit=", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=99999999999999999999999", "limit"),
        ("batch_id=0", "batch_id"),
        ("batch_id=x", "batch_id"),
        ("batch_id=9223372036854775808", "batch_id"),
        ("since=yesterday", "since"),
        ("since=2025-10-21", "since"),
        ("since=20251021203000Z", "since"),
        ("since=1761057000", "since"),
        ("until=2025-10-21x12:00:00Z", "until"),
        ("until=", "until"),
        ("until=9999-12-31T23:59:59-10:00", "until"),
        ("colour=red", "colour"),
        ("format=csv", "format"),
        ("Topic=a", "Topic"),
        ("topic=a&topic=b", "topic"),
        ("topic=a&topic=a", "topic"),
        ("limit=1&limit=2", "limit"),
        ("since=2025-10-21T00:00:00Z&since=2025-10-21T00:00:00Z", "since"),
        ("cursor=x&cursor=y", "cursor"),
        ("topic=%00", "topic"),
        ("source=a%00", "source"),
        ("event_id=%00", "event_id"),
    ],
)
def test_a_wrong_parameter_is_a_400_that_names_it(parameters: str, named: str, client: Client) -> None:
    answer = client.get(f"/events?{parameters}")
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(named)


@pytest.mark.parametrize("address", ["/stats?topic=x", "/batches/1?topic=x"])
def test_a_parameter_that_an_address_does_not_take_is_a_400_too(address: str, client: Client) -> None:
    answer = client.get(address)
    assert answer.status_code == 400
    assert answer.json()["detail"] == "topic is not a parameter; this address takes none."


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/csv"])
def test_a_wrong_parameter_of_a_stream_is_a_400(accept: str, client: Client) -> None:
    answer = client.get("/events?limit=0", headers={"Accept": accept})
    assert answer.status_code == 400
    assert json.loads(answer.content)["detail"].startswith("limit")


def token(value: Any) -> str:
    return urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "é",
        "!!!!",
        "0" * 9,
        token(b"\xff\xfe"),
        token(b"["),
        token(b"[" * 100_000),
        token({}),
        token([]),
        token([False]),
        token(["false", 1]),
        token([False, "1"]),
        token([False, 1.5]),
        token([False, None]),
        token([False, 2**63]),
        token([False, -(2**63)]),
        token([False, 10**30]),
        token([False, 1, "yesterday"]),
        token([False, 1, "2025-10-21T14:30:00Z"]),
    ],
)
def test_a_cursor_that_is_not_ours_is_a_400(cursor: str, client: Client) -> None:
    stored(1)
    answer = client.get("/events", {"cursor": cursor})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("cursor")


@pytest.mark.parametrize(
    "moment",
    [
        None,
        "2025-10-21T14:30:00",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
    ],
)
def test_a_cursor_with_a_moment_that_is_none_is_a_400(moment: str | None, client: Client) -> None:
    stored(1)
    answer = client.get("/events", {"since": "2025-10-21T00:00:00Z", "cursor": token([False, 1, moment])})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("cursor")


@given(
    st.binary(max_size=30)
    | st.lists(st.none() | st.booleans() | st.integers() | st.text(max_size=20)).map(json.dumps).map(str.encode)
)
@settings(max_examples=60, deadline=None)
def test_any_cursor_at_all_is_a_place_or_refused(cursor: bytes) -> None:
    for more in ({}, {"since": "2025-10-21T00:00:00Z"}):
        try:
            query = listing.read_query({"cursor": token(cursor), **more})
        except ValidationError:
            continue
        query.page()


def test_a_cursor_is_opaque_but_honest(client: Client) -> None:
    stored(2)
    cursor = page(client, limit=1)["next"].split("cursor=")[1]
    assert json.loads(urlsafe_b64decode(cursor + "==")) == [False, Event.objects.order_by("pk")[0].pk, None, False]


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson", "text/csv", "*/*", "application/*"])
def test_each_type_that_is_offered_can_be_had(accept: str, client: Client) -> None:
    assert client.get("/events", headers={"Accept": accept}).status_code == 200


@pytest.mark.parametrize(
    ("accept", "given"),
    [
        ("", "application/json"),
        ("application/json;q=0.2, text/csv;q=0.8", "text/csv"),
        ("text/csv;q=0.2, application/x-ndjson;q=0.3, */*;q=0.1", "application/x-ndjson"),
        ("application/json;q=0, */*", "application/x-ndjson"),
        ("application/*;q=0, */*;q=0.1", "text/csv"),
        ("*/*;q=0.5, text/csv", "text/csv"),
        ("text/*;q=0.5, application/*;q=0.4", "text/csv"),
        ("text/csv; charset=utf-8", "text/csv"),
        ("TEXT/CSV", "text/csv"),
        ("text/html, image/gif, *; q=.2, */*; q=.2", "application/json"),
    ],
)
def test_the_type_that_is_preferred_is_given(accept: str, given: str, client: Client) -> None:
    answer = client.get("/events", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer["Content-Type"].split(";")[0] == given


@pytest.mark.parametrize("accept", ["*/*;q=0", "application/json;q=0", "text/csv;q=0, application/x-ndjson;q=0.0"])
def test_a_type_that_is_excluded_is_not_given(accept: str, client: Client) -> None:
    assert client.get("/events", headers={"Accept": accept}).status_code == 406


def test_a_type_that_is_not_offered_is_a_406(client: Client) -> None:
    answer = client.get("/events", headers={"Accept": "image/png"})
    assert answer.status_code == 406
    assert answer.json()["detail"]


def test_a_database_that_does_not_answer_is_a_503(client: Client) -> None:
    def refuse(execute: Any, sql: str, *rest: Any) -> Any:
        raise OperationalError("disk I/O error")

    with connection.execute_wrapper(refuse):
        answer = client.get("/events")
    assert answer.status_code == 503
    assert int(answer["Retry-After"]) > 0


# --- Streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("application/x-ndjson", "application/x-ndjson"), ("text/csv", "text/csv; charset=utf-8")],
)
def test_a_stream_says_what_it_is(accept: str, content_type: str, client: Client) -> None:
    answer = client.get("/events", headers={"Accept": accept})
    assert answer["Content-Type"] == content_type
    assert answer.streaming  # type: ignore[attr-defined]


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/csv"])
def test_a_stream_holds_a_slice_at_a_time(accept: str, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by the slices: each is read only when the one before was taken."""
    monkeypatch.setattr(listing, "SLICE", 10)
    stored(45)
    answer = client.get("/events", headers={"Accept": accept})
    chunks = iter(answer.streaming_content)  # type: ignore[attr-defined]
    if accept == "text/csv":
        next(chunks)
    for taken in range(1, 6):
        with CaptureQueriesContext(connection) as statements:
            chunk = next(chunks)
        # The rows without their payloads, and by their ids the payloads; PostgreSQL is asked how long they are first.
        about_events = sum('"events_event"' in statement["sql"] for statement in statements)
        assert about_events == (3 if connection.vendor == "postgresql" else 2)
        assert len(chunk.splitlines()) == (10 if taken < 5 else 5)


@pytest.mark.parametrize("parameters", [{}, {"since": NOON.isoformat()}])
def test_a_stream_gives_every_match_once(
    parameters: dict[str, str], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "SLICE", 10)
    stored(40)
    lines = streamed(client, "application/x-ndjson", **parameters).splitlines()
    assert [int(json.loads(line)["event_id"]) for line in lines] == list(range(40))


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/csv"])
def test_a_stream_takes_no_notice_of_pages(accept: str, client: Client) -> None:
    stored(5)
    assert streamed(client, accept, limit=2) == streamed(client, accept)


def test_a_stream_ends_when_its_key_is_revoked(client: Client, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is cut off, so that nobody takes what came for all of it."""
    settings.REQUIRE_API_KEY = True
    monkeypatch.setattr(listing, "ASKED_EVERY_SECONDS", 0)
    monkeypatch.setattr(listing, "SLICE", 10)
    stored(40)
    row, key = keys.create("reader", may_publish=False, may_read=True)
    asked = {"Accept": "application/x-ndjson", "Authorization": f"Api-Key {key}"}
    chunks = iter(client.get("/events", headers=asked).streaming_content)  # type: ignore[attr-defined]
    assert next(chunks)
    assert next(chunks)
    keys.revoke([row.prefix])
    with pytest.raises(ConnectionError):
        next(chunks)


def test_a_csv_of_nothing_is_its_header(client: Client) -> None:
    assert streamed(client, "text/csv") == b"id,topic,event_id,source,timestamp,payload,received_at,batch_id\r\n"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
@pytest.mark.parametrize("field", ["topic", "event_id", "source"])
def test_a_csv_has_no_formula(field: str, start: str, client: Client, publish: Publish, drain: Drain) -> None:
    text = f"{start}cmd|' /C calc'!A0,\"\n"
    publish(event(**{"event_id": "1", field: text}))
    drain()
    [row] = csv.DictReader(io.StringIO(streamed(client, "text/csv").decode(), newline=""))
    assert row[field] == "'" + text


def test_plain_text_in_a_csv_is_left_as_it_is(client: Client, publish: Publish, drain: Drain) -> None:
    publish(event("a=1", topic="t-", source='s,"\r\n'))
    drain()
    [row] = csv.DictReader(io.StringIO(streamed(client, "text/csv").decode(), newline=""))
    assert (row["event_id"], row["topic"], row["source"]) == ("a=1", "t-", 's,"\r\n')


def stored_text(cell: str) -> str:
    """What stands in a cell of the CSV: the README says how to read it."""
    return cell[1:] if cell.startswith("'") else cell


#: Texts that begin as formulas, as guards and as neither do, with what ends a line for some reader.
troublesome = st.text(
    st.sampled_from("'=+-@\t\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029\uff1d\uff0b\uff0d\uff20\ufeff 1a,\"\\\U0001f600"),
    min_size=1,
    max_size=5,
)


@given(st.lists(st.tuples(troublesome, troublesome, troublesome, troublesome), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_every_text_can_be_read_back_from_every_export(texts: list[tuple[str, str, str, str]]) -> None:
    """Cells of the CSV are distinct and none is a formula; lines of the NDJSON are lines for every reader."""
    rows = [
        listing.StoredEvent(
            number, topic, event_id, source, NOON, msgspec.Raw(msgspec.json.encode({text: text})), NOON, 1
        )
        for number, (topic, event_id, source, text) in enumerate(texts)
    ]
    table = export.csv_header(listing.StoredEvent) + export.csv_rows(rows)
    cells = list(csv.DictReader(io.StringIO(table.decode(), newline="")))
    assert [tuple(stored_text(row[name]) for name in ("topic", "event_id", "source")) for row in cells] == [
        each[:3] for each in texts
    ]
    assert [json.loads(row["payload"]) for row in cells] == [{each[3]: each[3]} for each in texts]
    for row in cells:
        assert not any(cell.strip().lstrip("\ufeff").startswith(tuple("=+-@＝＋－＠")) for cell in row.values())
    lines = export.ndjson(rows)
    decoder = LineDecoder()
    for read in (
        lines.decode().splitlines(),
        lines.splitlines(),
        [*decoder.decode(lines.decode()), *decoder.flush()],
    ):
        found = [json.loads(line) for line in read]
        assert [(each["topic"], each["event_id"], each["source"]) for each in found] == [each[:3] for each in texts]
        assert [each["payload"] for each in found] == [{each[3]: each[3]} for each in texts]


@pytest.mark.parametrize(("one", "other"), [("-5", "'-5"), ("'", "''"), ("＝1", "'＝1"), ("\n=1", "'\n=1")])
def test_two_keys_are_two_keys_in_a_csv(one: str, other: str) -> None:
    assert export.inert(one) != export.inert(other)
    assert {stored_text(export.inert(text)) for text in (one, other)} == {one, other}


# --- To the byte ------------------------------------------------------------------------------------------------------

spaces = st.text(alphabet=" \t\r\n", max_size=2)
numbers = (
    st.integers().map(str)
    | st.integers(10**20, 10**400).map(str)
    | st.decimals(allow_nan=False, allow_infinity=False, places=20, min_value=-1000, max_value=1000).map(str)
    | st.sampled_from(["-0", "0.10", "1E5", "1e-300", "-0.0", "12345678901234567890.123456789012345678901234567890"])
)
characters = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
texts = st.one_of(
    characters.map(lambda text: json.dumps(text, ensure_ascii=False)),
    characters.map(lambda text: json.dumps(text, ensure_ascii=True)),
    st.sampled_from([r'"\/\b\f\u00e9\ud83d\ude00"', r'"\\u0000"', '"\u2028\u2029\ufeff"']),
)


@st.composite
def documents(draw: Any, values: Any) -> str:
    members = draw(st.lists(st.tuples(texts, values), max_size=4))
    inner = ",".join(
        f"{draw(spaces)}{name}{draw(spaces)}:{draw(spaces)}{value}{draw(spaces)}" for name, value in members
    )
    return "{" + (inner or draw(spaces)) + "}"


values = st.recursive(
    numbers | texts | st.sampled_from(["null", "true", "false"]),
    lambda inner: documents(inner) | st.lists(inner, max_size=3).map(lambda items: "[" + " ,".join(items) + "]"),
    max_leaves=6,
)


#: What NDJSON changes of a payload, which stays equal: line breaks between words, and what else ends a line.
ON_ONE_LINE = str.maketrans({"\r": " ", "\n": " ", "\x85": r"\u0085", "\u2028": r"\u2028", "\u2029": r"\u2029"})


@given(st.lists(documents(values), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_any_payload_comes_back_to_the_byte_in_every_form(payloads: list[str]) -> None:
    client = Client()
    body = ",".join(
        f'{{"topic":"t","event_id":"{number}","source":"s","payload":{payload}}}'
        for number, payload in enumerate(payloads)
    )
    with transaction.atomic():
        answer = client.generic("POST", "/publish", f"[{body}]".encode(), content_type="application/json")
        assert answer.status_code == 202, answer.content
        store.store_chunk()
        listed = msgspec.json.decode(client.get("/events").content, type=dict[str, msgspec.Raw])["events"]
        lines = streamed(client, "application/x-ndjson")
        rows = list(csv.DictReader(io.StringIO(streamed(client, "text/csv").decode(), newline="")))
        transaction.set_rollback(True)
    raw = msgspec.json.Decoder(dict[str, msgspec.Raw])
    assert [
        bytes(got["payload"]).decode() for got in msgspec.json.decode(listed, type=list[dict[str, msgspec.Raw]])
    ] == payloads
    # One object a line, for whoever reads it line by line.
    *objects, end = lines.split(b"\n")
    assert end == b""
    on_one_line = [payload.translate(ON_ONE_LINE) for payload in payloads]
    assert [bytes(raw.decode(line)["payload"]).decode() for line in objects] == on_one_line
    assert [row["payload"] for row in rows] == payloads
