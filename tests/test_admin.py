"""Claims about the admin's lists and pages: what they show, that they change nothing, and that indexes serve them."""

import html
import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import chain
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from events import store
from events.admin import listing, payload
from events.admin.payload import compare, pretty
from events.api import events as events_api
from events.models import Batch, Duplicate, Event, TopicMinute, TopicTotal
from events.stats import books
from tests.conftest import Publish, event

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]
EVIL = "<script>alert(1)</script>"
LISTS = ("event", "duplicate", "batch", "topictotal", "sourcetotal")


def text(client: Client, address: str) -> str:
    answer = client.get(address)
    assert answer.status_code == 200, address
    body: str = answer.content.decode()
    return body


def ids(page: str, client_list: str = "event") -> list[int]:
    """The numbers of the rows that a list links to, in order."""
    return [
        int(number) for number in re.findall(rf'class="key" href="/admin/events/{client_list}/(\d+)/change/"', page)
    ]


@pytest.fixture
def stored(publish: Publish, drain: Drain) -> None:
    """Two events of one topic, one of another, and two duplicates, one of which says something else."""
    publish([event("a-1", payload={"price": 1, "note": "x"}), event("a-2"), event("b-1", topic="other", source="shop")])
    publish([event("a-1", source="late", payload={"price": 2, "note": "x"}), event("a-2", source="late")])
    drain()


@pytest.fixture
def dead(publish: Publish, settings: Any) -> int:
    settings.INBOX_MAX_ATTEMPTS = 1
    number: int = publish([event("d-1", payload={"evil": EVIL})]).json()["batch_id"]
    with patch("events.wire.decode_kept", side_effect=ValueError(f"torn {EVIL}")):
        store.store_chunk()
    return number


# --- Who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTS)
def test_strangers_are_sent_to_the_login(client: Client, name: str) -> None:
    assert client.get(f"/admin/events/{name}/").headers["Location"].startswith("/admin/login/")


@pytest.mark.parametrize("name", [*LISTS, "event/export.csv", "event/1/change"])
def test_staff_without_the_permission_see_nothing(client: Client, stored: None, name: str) -> None:
    client.force_login(User.objects.create_user("guest", is_staff=True))
    assert client.get(f"/admin/events/{name}/".replace(".csv/", ".csv")).status_code == 403


@pytest.mark.parametrize("name", ["event", "duplicate", "batch", "topictotal", "sourcetotal"])
def test_nothing_can_be_added_changed_or_deleted(admin_client: Client, stored: None, name: str) -> None:
    first = 1
    assert admin_client.get(f"/admin/events/{name}/add/").status_code == 403
    assert admin_client.post(f"/admin/events/{name}/{first}/delete/", {"post": "yes"}).status_code in (403, 404)
    before = [list(model.objects.values()) for model in (Event, Duplicate, Batch, TopicTotal)]
    admin_client.post(f"/admin/events/{name}/{first}/change/", {"topic": "changed"})
    assert [list(model.objects.values()) for model in (Event, Duplicate, Batch, TopicTotal)] == before


def test_only_who_may_change_batches_settles_dead_letters(client: Client, dead: int) -> None:
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_batch"))
    client.force_login(viewer)
    page = text(client, f"/admin/events/batch/{dead}/change/")
    assert "Replay" not in page
    assert client.post(f"/admin/events/batch/{dead}/replay").status_code == 403
    client.post("/admin/events/batch/", {"action": "replay", "_selected_action": [dead]})
    assert Batch.objects.get().status == "failed"


# --- Events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["b-1", "a-2", "a-1"]),
        ("topic=t", ["a-2", "a-1"]),
        ("source=shop", ["b-1"]),
        ("event_id=a-2", ["a-2"]),
        ("event_id=a", ["a-2", "a-1"]),
        ("event_id=a&topic=t", ["a-2", "a-1"]),
        ("event_id=a-1&topic=other", []),
        ("event_id=%25", []),
        ("topic=T", []),
        ("batch_id=1", ["b-1", "a-2", "a-1"]),
        ("since=2020-01-01T00:00", ["b-1", "a-2", "a-1"]),
        ("until=2020-01-01T00:00", []),
        ("since=2020-01-01T02:00:00%2B02:00", ["b-1", "a-2", "a-1"]),
        ("until=20200101T000000Z", []),
    ],
)
def test_filters_find_events(admin_client: Client, stored: None, query: str, found: list[str]) -> None:
    batch = Batch.objects.order_by("pk").first()
    assert batch
    page = text(admin_client, f"/admin/events/event/?{query.replace('batch_id=1', f'batch_id={batch.pk}')}")
    assert [Event.objects.get(pk=number).event_id for number in ids(page)] == found


@pytest.mark.parametrize("query", ["topic=t", "source=test", "topic=t&source=test"])
def test_what_is_frequent_is_found_along_the_time(admin_client: Client, stored: None, query: str) -> None:
    with patch("events.admin.filters.SORTED", 1), CaptureQueriesContext(connection) as queries:
        page = text(admin_client, f"/admin/events/event/?{query}&since=2020-01-01T00:00")
    assert [Event.objects.get(pk=number).event_id for number in ids(page)] == ["a-2", "a-1"]
    if connection.vendor == "sqlite":
        [sql] = [query["sql"] for query in queries if f'"{Event._meta.db_table}"."source"' in query["sql"]]
        assert any("event_received_at" in step for step in plan(sql))
        assert not any("TEMP B-TREE" in step for step in plan(sql))


@pytest.mark.parametrize(
    "query",
    [
        "since=yesterday",
        "since=2020-01-01",
        "since=2020-01-01x00:00",
        "until=20200101020304Z",
        "until=01/02/2020 03:04",
        "batch_id=x",
        "batch_id=99999999999999999999",
        "topic=" + "x" * 256,
    ],
)
def test_a_filter_that_cannot_be_read_says_so_and_finds_nothing(admin_client: Client, stored: None, query: str) -> None:
    page = text(admin_client, f"/admin/events/event/?{query}")
    assert 'role="alert"' in page
    assert ids(page) == []


def test_a_lookup_that_no_index_serves_is_refused(admin_client: Client, stored: None) -> None:
    answer = admin_client.get("/admin/events/event/?payload__contains=x")
    assert answer.status_code == 302


def test_pages_lead_through_all_events_and_back(admin_client: Client, publish: Publish, drain: Drain) -> None:
    publish([event(f"{n:03}") for n in range(25)])
    drain()
    for query in ("", "topic=t&", "since=2020-01-01T00:00&"):
        with patch.object(listing.ReadOnlyAdmin, "list_per_page", 10):
            seen: list[list[int]] = []
            address = f"/admin/events/event/?{query}"
            pages = []
            while address:
                pages.append(address)
                page = text(admin_client, address)
                seen.append(ids(page))
                address = link(page, "next")
            assert [len(part) for part in seen] == [10, 10, 5]
            everything = list(chain.from_iterable(seen))
            assert everything == sorted(everything, reverse=True)
            back = link(page, "prev")
            assert ids(text(admin_client, back)) == seen[1]
            first = text(admin_client, link(text(admin_client, back), "prev"))
            assert ids(first) == seen[0]


def link(page: str, rel: str) -> str:
    found = re.search(rf'href="([^"]+)" rel="{rel}"', page)
    return f"/admin/events/event/{html.unescape(found[1])}" if found else ""


@pytest.mark.parametrize("place", ["older-0", "newer-x", "sideways-3", "older-99999999999999999999", "7"])
def test_a_place_that_is_none_is_no_error(admin_client: Client, stored: None, place: str) -> None:
    for query in ("", "since=2020-01-01T00:00&"):
        text(admin_client, f"/admin/events/event/?{query}p={place}")


def test_an_event_shows_its_payload_its_batch_and_its_duplicates(admin_client: Client, stored: None) -> None:
    first = Event.objects.get(event_id="a-1")
    page = text(admin_client, f"/admin/events/event/{first.pk}/change/")
    assert "price" in page
    assert f"/admin/events/batch/{first.batch_id}/change/" in page
    dropped = Duplicate.objects.get(event_id="a-1")
    assert f"/admin/events/duplicate/{dropped.pk}/change/" in page
    assert "late" in page


def test_what_is_not_there_is_a_404(admin_client: Client) -> None:
    for name in ("event", "duplicate", "batch"):
        for number in ("1", "0", "x", "9" * 30):
            assert admin_client.get(f"/admin/events/{name}/{number}/change/").status_code == 404


def test_the_export_has_what_the_list_has(admin_client: Client, stored: None) -> None:
    def lines(query: str) -> list[Any]:
        answer = admin_client.get(f"/admin/events/event/export.ndjson?{query}")
        body = b"".join(answer.streaming_content)  # type: ignore[attr-defined]
        return [json.loads(line)["event_id"] for line in body.splitlines()]

    assert lines("") == ["a-1", "a-2", "b-1"]
    assert lines("topic=t") == ["a-1", "a-2"]
    assert lines("event_id=a") == ["a-1", "a-2"]
    assert lines("source=shop&since=2020-01-01T00:00") == ["b-1"]
    csv = b"".join(admin_client.get("/admin/events/event/export.csv").streaming_content)  # type: ignore[attr-defined]
    assert csv.count(b"\r\n") == 4
    assert admin_client.get("/admin/events/event/export.csv?since=x").status_code == 400
    assert admin_client.get("/admin/events/event/export.xml").status_code == 404


# --- Duplicates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["a-2", "a-1"]),
        ("payload=differs", ["a-1"]),
        ("payload=same", ["a-2"]),
        ("event_id=a-2", ["a-2"]),
        ("event_id=a", ["a-2", "a-1"]),
        ("topic=t&event_id=a-1", ["a-1"]),
        ("source=late", ["a-2", "a-1"]),
        ("source=test", []),
    ],
)
def test_filters_find_duplicates(admin_client: Client, stored: None, query: str, found: list[str]) -> None:
    numbers = ids(text(admin_client, f"/admin/events/duplicate/?{query}"), "duplicate")
    assert [Duplicate.objects.get(pk=number).event_id for number in numbers] == found


def test_a_duplicate_that_differs_shows_both_sides(admin_client: Client, stored: None) -> None:
    page = text(admin_client, f"/admin/events/duplicate/{Duplicate.objects.get(event_id='a-1').pk}/change/")
    assert '<code role="cell" class="diff-left">  &quot;price&quot;: 1</code>' in page
    assert '<code role="cell" class="diff-right">  &quot;price&quot;: 2</code>' in page


def test_a_retry_is_called_one(admin_client: Client, stored: None) -> None:
    page = text(admin_client, f"/admin/events/duplicate/{Duplicate.objects.get(event_id='a-2').pk}/change/")
    assert "a retry, as expected" in page


def test_payloads_are_compared_without_regard_to_the_order_of_keys() -> None:
    lines = compare('{"b": 1, "a": 12345678901234567890.10}', '{"a": 12345678901234567890.10, "b": 2}') or []
    assert [(line.left, line.right) for line in lines if not line.same] == [('  "b": 1', '  "b": 2')]
    assert any("12345678901234567890.10" in (line.left or "") for line in lines)


def beside(left: str, right: str) -> list[tuple[str | None, str | None]]:
    """The lines that differ, as they stand beside each other."""
    differing = [line for line in compare(left, right) or [] if not line.same]
    return [(line.left and line.left.strip(), line.right and line.right.strip()) for line in differing]


def test_what_differs_stands_beside_the_value_of_the_same_name() -> None:
    assert beside('{"a": 1, "b": 2}', '{"a2": 5, "b": 3, "c": 4}') == [
        ('"a": 1,', None),
        (None, '"a2": 5,'),
        ('"b": 2', '"b": 3,'),
        (None, '"c": 4'),
    ]
    assert beside('{"a": {"x": 1}}', '{"a": 3}') == [('"a": {', '"a": 3'), ('"x": 1', None), ("}", None)]


def test_elements_of_a_list_stand_beside_each_other_by_their_place() -> None:
    assert beside("[1, 2, 3]", "[1, 5, 6]") == [("2,", "5,"), ("3", "6")]


def test_a_comma_behind_it_is_no_difference() -> None:
    assert beside('{"a": 1}', '{"a": 1, "b": 2}') == [(None, '"b": 2')]
    # This one is in the text.
    assert beside('{"a": "x,"}', '{"a": "x"}') == [('"a": "x,"', '"a": "x"')]


def test_payloads_too_long_to_compare_are_shown_one_after_the_other() -> None:
    long = json.dumps(list(range(2000)))
    assert compare(f'{{"a": {long}}}', '{"a": 1}') is None


def test_a_payload_is_shown_as_it_is() -> None:
    shown = pretty('{"z":1.10,"a":123456789012345678901234567890,"t":"ü<b>"}').html
    assert "1.10" in shown
    assert "123456789012345678901234567890" in shown
    assert shown.index("z") < shown.rindex("a")
    assert '<span class="mf">1.10</span>' in shown
    assert "ü&lt;b&gt;" in shown
    assert pretty("not JSON <b>").html.count("<b>") == 0


def test_a_huge_payload_is_shown_in_part_and_not_highlighted() -> None:
    shown = pretty(json.dumps({"text": "<b>" + "x" * 300_000}))
    assert shown.cut
    assert len(shown.html) < 210_000
    assert "<span" not in shown.html
    assert "<b>" not in shown.html


def test_a_payload_nested_deep_is_shown_as_far_as_a_page_goes() -> None:
    """Indented in full, it is a hundred times as large as it came."""
    deep = '{"a":' + "[" * 97 + "1,1" * 60_000 + "]" * 97 + "}"
    with patch("msgspec.json.format", side_effect=AssertionError("formats all of it")):
        shown = pretty(deep)
    assert shown.cut
    assert len(html.unescape(shown.html)) <= payload.SHOWN
    assert html.unescape(shown.html).startswith('{\n  "a": [\n    [\n      [')


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_a_payload_is_indented_as_json_is(value: Any) -> None:
    raw = json.dumps({"value": value})
    text = html.unescape(re.sub("<[^>]+>", "", pretty(raw).html))
    assert text.rstrip("\n") == msgspec.json.format(raw, indent=2)


def test_payloads_too_large_to_compare_are_not_parsed() -> None:
    with patch("events.admin.payload.json.loads", side_effect=AssertionError("parses all of it")):
        assert compare('{"a":"' + "x" * payload.COMPARED_CHARACTERS + '"}', "{}") is None


@pytest.fixture
def huge(publish: Publish, drain: Drain) -> str:
    """An event and a duplicate of it of 600,000 bytes each, which differ; and a dead letter as large."""
    text = "<x>" * 200_000
    publish(event("h", payload={"text": text, "n": 1}))
    publish(event("h", payload={"text": text, "n": 2}))
    drain()
    body = json.dumps([event("f", payload={"text": text})])
    Batch.objects.create(
        accepted_at=timezone.now(),
        next_attempt_at=timezone.now(),
        status="failed",
        received=1,
        size=len(body),
        body=body.encode(),
    )
    return text


def test_no_page_reads_or_shows_all_of_what_is_huge(admin_client: Client, huge: str) -> None:
    dead_letter = Batch.objects.get(status="failed")
    for address in (
        f"event/{Event.objects.get().pk}/change/",
        f"duplicate/{Duplicate.objects.get().pk}/change/",
        f"batch/{dead_letter.pk}/change/",
    ):
        with CaptureQueriesContext(connection) as queries:
            page = text(admin_client, f"/admin/events/{address}")
        # Each < takes four characters, and the duplicate's page has two payloads.
        assert len(page) < 1_800_000, address
        assert "the rest is not shown here" in page
        for query in queries:
            whole = re.sub(r"SUBSTR\w*\([^)]*\)", "", query["sql"], flags=re.IGNORECASE)
            assert not re.search(r'"(payload|body)"', whole.split(" FROM ")[0]), query["sql"]


def test_what_a_page_cuts_can_be_downloaded(admin_client: Client, huge: str) -> None:
    def downloaded(page: str) -> list[Any]:
        addresses = re.findall(r'href="([^"]+)" download', text(admin_client, page))
        answers = [admin_client.get(address) for address in addresses]
        assert all(answer["Content-Disposition"].startswith("attachment") for answer in answers)
        return [json.loads(b"".join(answer.streaming_content)) for answer in answers]  # type: ignore[attr-defined]

    stored, dropped = {"text": huge, "n": 1}, {"text": huge, "n": 2}
    assert downloaded(f"/admin/events/event/{Event.objects.get().pk}/change/") == [stored]
    assert downloaded(f"/admin/events/duplicate/{Duplicate.objects.get().pk}/change/") == [stored, dropped]
    [[kept]] = downloaded(f"/admin/events/batch/{Batch.objects.get(status='failed').pk}/change/")
    assert kept["payload"] == {"text": huge}


def test_a_download_of_nothing_is_a_404(admin_client: Client, stored: None) -> None:
    same = Duplicate.objects.get(event_id="a-2")
    for address in (f"duplicate/{same.pk}/payload", "event/999999/payload", f"event/{2**70}/payload"):
        assert admin_client.get(f"/admin/events/{address}").status_code == 404


# --- Rights and streams -----------------------------------------------------------------------------------------------


def viewer(client: Client, *permissions: str) -> User:
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    return user


def test_who_may_see_duplicates_only_does_not_see_the_stored_payload(client: Client, stored: None) -> None:
    viewer(client, "view_duplicate")
    Event.objects.update(payload='{"secret": 1}', source="stored-source")
    for name in ("a-1", "a-2"):
        page = text(client, f"/admin/events/duplicate/{Duplicate.objects.get(event_id=name).pk}/change/")
        assert "secret" not in page
        assert "stored-source" not in page
        assert "this account may not see events" in page
    assert "price" in text(client, f"/admin/events/duplicate/{Duplicate.objects.get(event_id='a-1').pk}/change/")
    assert client.get(f"/admin/events/event/{Event.objects.first().pk}/payload").status_code == 403  # type: ignore[union-attr]


def test_who_may_see_batches_only_sees_no_key_of_an_event(client: Client, stored: None, dead: int) -> None:
    viewer(client, "view_batch")
    for batch in Batch.objects.all():
        page = text(client, f"/admin/events/batch/{batch.pk}/change/").split('id="content-main"')[1]
        assert not any(key in page for key in ("a-1", "a-2", "b-1", "d-1"))
        assert "this account may not see" in page
    assert client.get(f"/admin/events/batch/{dead}/body").status_code == 403


def test_who_may_see_events_only_sees_no_duplicate(client: Client, stored: None) -> None:
    viewer(client, "view_event")
    page = text(client, f"/admin/events/event/{Event.objects.get(event_id='a-1').pk}/change/")
    assert "late" not in page
    assert "this account may not see duplicates" in page


@pytest.mark.parametrize("form", ["csv", "ndjson"])
def test_an_export_is_sent_in_pieces_that_a_slow_reader_can_take(
    admin_client: Client, stored: None, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(events_api, "PIECE", 10)
    pieces = list(admin_client.get(f"/admin/events/event/export.{form}").streaming_content)  # type: ignore[attr-defined]
    assert max(map(len, pieces)) == 10


def test_the_head_of_an_export_reads_no_event(admin_client: Client, stored: None) -> None:
    with CaptureQueriesContext(connection) as queries:
        answer = admin_client.head("/admin/events/event/export.ndjson")
        assert b"".join(answer.streaming_content) == b""  # type: ignore[attr-defined]
    assert not any('FROM "events_event"' in query["sql"] for query in queries)


def test_exports_have_as_many_places_as_streams(admin_client: Client, stored: None) -> None:
    opened = [admin_client.get("/admin/events/event/export.csv") for _ in range(2)]
    refused = admin_client.get("/admin/events/event/export.csv")
    assert refused.status_code == 503
    assert int(refused["Retry-After"]) > 0
    assert {answer.status_code for answer in opened} == {200}


def test_an_export_ends_when_its_reader_may_not_any_more(
    client: Client, stored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_api, "ASKED_EVERY_SECONDS", 0)
    user = viewer(client, "view_event")
    pieces = iter(client.get("/admin/events/event/export.csv").streaming_content)  # type: ignore[attr-defined]
    assert next(pieces)
    user.user_permissions.clear()
    with pytest.raises(ConnectionError):
        next(pieces)


# --- Batches ----------------------------------------------------------------------------------------------------------


def test_batches_say_what_became_of_them(admin_client: Client, stored: None, dead: int) -> None:
    page = text(admin_client, "/admin/events/batch/")
    assert "dead letter" in page
    assert page.count("status-processed") == 2
    failed = text(admin_client, "/admin/events/batch/?status=failed")
    assert ids(failed, "batch") == [dead]
    assert ids(text(admin_client, f"/admin/events/batch/?number={dead}"), "batch") == [dead]


def test_a_batch_shows_its_events_and_what_was_dropped_from_it(admin_client: Client, stored: None) -> None:
    first, second = Batch.objects.order_by("pk")
    page = text(admin_client, f"/admin/events/batch/{first.pk}/change/")
    assert all(f">{name}</a>" in page for name in ("a-1", "a-2", "b-1"))
    page = text(admin_client, f"/admin/events/batch/{second.pk}/change/")
    assert "every event of it was a duplicate" in page
    assert "status-differs" in page


def test_a_dead_letter_can_be_read(admin_client: Client, dead: int) -> None:
    page = text(admin_client, f"/admin/events/batch/{dead}/change/")
    assert "d-1" in page
    assert "torn &lt;script&gt;" in page
    assert EVIL not in page


def test_the_button_replays_and_the_log_says_who_did_it(admin_client: Client, dead: int, drain: Drain) -> None:
    answer = admin_client.post(f"/admin/events/batch/{dead}/replay", follow=True)
    assert "pending again" in answer.content.decode()
    assert LogEntry.objects.get().get_change_message() == "Replayed."
    drain()
    assert (books().unique, books().failed) == (1, 0)


def test_the_buttons_want_a_post(admin_client: Client, dead: int) -> None:
    for word in ("replay", "discard"):
        assert admin_client.get(f"/admin/events/batch/{dead}/{word}").status_code == 405
    assert Batch.objects.get().status == "failed"


def test_the_actions_settle_what_is_chosen(admin_client: Client, stored: None, dead: int) -> None:
    chosen = list(Batch.objects.values_list("pk", flat=True))
    page = admin_client.post(
        "/admin/events/batch/", {"action": "discard", "_selected_action": chosen}, follow=True
    ).content.decode()
    assert f"Batch {dead} is discarded" in page
    assert "2 of 3 left as they are" in page
    assert books().discarded == 1
    admin_client.post("/admin/events/batch/", {"action": "replay", "_selected_action": [dead]})
    assert books().pending == 1


# --- Topics and sources -----------------------------------------------------------------------------------------------


def test_topics_and_sources_show_their_totals(admin_client: Client, stored: None) -> None:
    page = text(admin_client, "/admin/events/topictotal/")
    assert '/admin/events/event/?topic=other"' in page
    assert '<svg class="spark"' in page
    assert "50 %" in page
    page = text(admin_client, "/admin/events/sourcetotal/?o=-4")
    assert '/admin/events/duplicate/?source=late&amp;payload=differs"' in page
    assert "other" not in text(admin_client, "/admin/events/topictotal/?q=t").split("result_list")[1]


# --- All of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTS)
def test_an_empty_list_says_what_to_do(admin_client: Client, name: str) -> None:
    page = text(admin_client, f"/admin/events/{name}/")
    assert "Create a new item" not in page
    assert "Nothing here yet" in page


def test_whatever_comes_from_outside_is_escaped(admin_client: Client, publish: Publish, drain: Drain) -> None:
    evil = event(EVIL, topic=EVIL, source=EVIL, payload={EVIL: EVIL})
    publish([evil, evil, {**evil, "payload": {EVIL: 1}}], **{"Idempotency-Key": EVIL})
    drain()
    addresses = [f"/admin/events/{name}/" for name in LISTS]
    addresses += [f"/admin/events/event/?topic={EVIL}&event_id={EVIL}", f"/admin/events/batch/?idempotency_key={EVIL}"]
    for model in (Event, Batch, Duplicate):
        numbers = model.objects.values_list("pk", flat=True)
        addresses += [f"/admin/events/{model._meta.model_name}/{number}/change/" for number in numbers]
    for address in addresses:
        page = text(admin_client, address)
        assert EVIL not in page, address
        # The list of batches shows nothing that a publisher wrote.
        assert "&lt;script&gt;" in page or address == "/admin/events/batch/", address


def big_tables(publish: Publish, drain: Drain) -> None:
    now = timezone.now()
    for number in range(6):
        publish([event(f"{number}-{n}", topic=f"t{n % 3}", source=f"s{n % 2}") for n in range(20)] * 2)
    drain()
    TopicMinute.objects.create(topic="t", minute=now - timedelta(minutes=5), unique=1)


EVENT_QUERIES = (
    "", "topic=t1", "source=s1", "batch_id=3", "event_id=1-3", "event_id=1-", "event_id=1-&topic=t1",
    "since=2020-01-01T00:00", "since=2020-01-01T00:00&until=2030-01-01T00:00", "p=older-50", "topic=t1&p=newer-50",
    "since=2020-01-01T00:00&p=older-50",
)  # fmt: skip
DUPLICATE_QUERIES = ("", "payload=differs", "source=s1", "topic=t1", "event_id=1-3", "batch_id=3", "p=older-9")
BATCH_QUERIES = ("", "status=failed", "status=pending", "status=processed", "number=3", "p=older-3")
ADDRESSES = (
    *(f"event/?{query}" for query in EVENT_QUERIES),
    *(f"duplicate/?{query}" for query in DUPLICATE_QUERIES),
    *(f"batch/?{query}" for query in BATCH_QUERIES),
    "event/5/change/", "duplicate/5/change/", "batch/3/change/",
)  # fmt: skip


@pytest.mark.skipif(connection.vendor != "sqlite", reason="reads SQLite's query plans")
@pytest.mark.parametrize("address", ADDRESSES)
def test_every_page_reads_the_big_tables_through_an_index_and_counts_nothing(
    admin_client: Client, publish: Publish, drain: Drain, address: str
) -> None:
    big_tables(publish, drain)
    with CaptureQueriesContext(connection) as queries:
        text(admin_client, f"/admin/events/{address}")
    for sql in (query["sql"] for query in queries):
        if not any(f'FROM "{model._meta.db_table}"' in sql for model in (Event, Duplicate, Batch)):
            continue
        assert "COUNT(" not in sql
        for step in plan(sql):
            # Without an order, a scan is only as long as the rows that are asked for.
            assert (
                not step.startswith("USE TEMP B-TREE FOR ORDER BY") or "pk__in" in address or "event_id=" in address
            ), sql
            assert not step.startswith("SCAN events_") or "USING" in step or _newest_first(sql), f"{step}: {sql}"


def _newest_first(sql: str) -> bool:
    """Whether it walks along the primary key from its end, as far as the page is long."""
    # Nearly every batch is processed, so that a walk which looks for these passes over few.
    filtered = " WHERE " in sql.split("ORDER BY")[0] and "'processed'" not in sql
    return ('."id" DESC LIMIT' in sql or '."id" ASC LIMIT' in sql) and not filtered


def plan(sql: str) -> Iterator[str]:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
        for row in cursor.fetchall():
            yield row[-1]
