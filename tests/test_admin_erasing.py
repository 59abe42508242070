"""The admin's button that erases a payload, its list of erasures, and its search by a value in the payload."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from events import payload_search, store
from events.admin import listing
from events.erasure import erase
from events.models import ApiKey, Duplicate, Erasure, Event
from tests.conftest import Publish, event
from tests.test_admin import ids, text
from tests.test_events_by_payload import Clock

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]
BUTTON = "Erase payload"


@pytest.fixture
def pk(publish: Publish, drain: Drain) -> int:
    publish([event("1", payload={"name": "Ada"})])
    drain()
    return Event.objects.get().pk


def logged_in(*permissions: str) -> Client:
    user = User.objects.create_user("clerk", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


# --- Erasing ----------------------------------------------------------------------------------------------------------


def test_the_button_asks_first_and_then_erases(admin_client: Client, pk: int) -> None:
    assert BUTTON in text(admin_client, f"/admin/events/event/{pk}/change/")
    question = text(admin_client, f"/admin/events/event/{pk}/erase")
    assert "Erase the payload of this event?" in question
    assert Event.objects.get().payload == '{"name": "Ada"}'
    answer = admin_client.post(f"/admin/events/event/{pk}/erase", follow=True)
    assert answer.redirect_chain == [(f"/admin/events/event/{pk}/change/", 302)]
    page = answer.content.decode()
    assert "The payload is erased." in page
    assert "admin (admin)" in page
    assert BUTTON not in page
    assert Event.objects.get().payload == "{}"
    assert Erasure.objects.get().erased_by == "admin (admin)"


def test_who_may_only_look_gets_no_button_and_erases_nothing(pk: int) -> None:
    client = logged_in("view_event")
    assert BUTTON not in text(client, f"/admin/events/event/{pk}/change/")
    assert client.get(f"/admin/events/event/{pk}/erase").status_code == 403
    assert client.post(f"/admin/events/event/{pk}/erase").status_code == 403
    assert not Erasure.objects.exists()


def test_who_may_erase_does_so_without_being_a_superuser(pk: int) -> None:
    client = logged_in("view_event", "erase_event")
    assert BUTTON in text(client, f"/admin/events/event/{pk}/change/")
    client.post(f"/admin/events/event/{pk}/erase")
    assert Erasure.objects.get().erased_by == "clerk (admin)"


def test_who_may_see_no_event_erases_none(pk: int) -> None:
    assert logged_in("erase_event").post(f"/admin/events/event/{pk}/erase").status_code == 403


def test_what_is_not_there_is_a_404(admin_client: Client) -> None:
    for number in ("0", "99", str(2**63)):
        assert admin_client.post(f"/admin/events/event/{number}/erase").status_code == 404


def test_erasures_are_listed_and_cannot_be_changed(admin_client: Client, pk: int) -> None:
    assert "No payload was erased yet." in text(admin_client, "/admin/events/erasure/")
    admin_client.post(f"/admin/events/event/{pk}/erase")
    page = text(admin_client, "/admin/events/erasure/")
    assert "admin (admin)" in page
    assert "event_id=1&amp;topic=t" in page
    assert "admin (admin)" not in text(admin_client, "/admin/events/erasure/?topic=other")
    row = Erasure.objects.get()
    answer = admin_client.get(f"/admin/events/erasure/{row.pk}/change/", follow=True)
    assert "admin (admin)" in answer.content.decode()
    assert admin_client.get("/admin/events/erasure/add/").status_code == 403
    assert admin_client.post(f"/admin/events/erasure/{row.pk}/delete/").status_code == 403
    assert logged_in("view_event").get("/admin/events/erasure/").status_code == 403


def test_the_form_makes_a_key_that_may_only_erase(admin_client: Client) -> None:
    page = admin_client.post("/admin/events/apikey/add/", {"name": "the lawyers", "may_erase": "on"}).content.decode()
    assert ApiKey.objects.get().scopes == ["erase"]
    # No number of an event: nobody erases one by trying the line.
    assert "/events/&lt;id&gt;" in page
    assert "-X DELETE" in page


# --- Searching --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hundred(publish: Publish, drain: Drain) -> list[int]:
    publish([event(str(n), payload={"n": n, "user": {"id": n % 3}}) for n in range(100)])
    drain()
    return list(Event.objects.order_by("-pk").values_list("pk", flat=True))


@pytest.mark.parametrize("typed", ["payload.n=7", "n=7", " n = 7 "])
def test_a_value_finds_its_events(typed: str, admin_client: Client, hundred: list[int]) -> None:
    page = admin_client.get("/admin/events/event/", {"payload": typed}).content.decode()
    assert ids(page) == [hundred[92]]
    assert "Looked at 100 events." in page
    assert "manage.py index payload.n makes it fast" in page


def test_it_says_that_older_ones_were_not_looked_at(
    admin_client: Client, hundred: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload_search, "monotonic", Clock(payload_search.SEARCH_SECONDS))
    page = text(admin_client, "/admin/events/event/?payload=n%3D7")
    assert ids(page) == []
    assert "Looked at 50 events" in page
    assert "and no further" in page
    assert "Nothing matches so far" in page
    [older] = set(re.findall(r'href="(\?[^"]*p=older-\d+[^"]*)"', page))
    page = text(admin_client, "/admin/events/event/" + older.replace("&amp;", "&"))
    assert ids(page) == [hundred[92]]
    assert "Looked at 50 events." in page
    [newer] = set(re.findall(r'href="(\?[^"]*p=newer-\d+[^"]*)"', page))
    assert ids(text(admin_client, "/admin/events/event/" + newer.replace("&amp;", "&"))) == []


@pytest.mark.parametrize("since", ["", "&since=2000-01-01T00:00"])
def test_pages_of_a_search_go_both_ways(
    since: str, admin_client: Client, hundred: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing.Listing, "list_per_page", 10, raising=False)
    monkeypatch.setattr("events.admin.events.EventAdmin.list_per_page", 10)
    wanted = [pk for pk in hundred if json.loads(Event.objects.get(pk=pk).payload)["user"]["id"] == 2]
    pages = [text(admin_client, f"/admin/events/event/?payload=user.id%3D2{since}")]
    while older := re.findall(r'href="(\?[^"]*p=older-\d+[^"]*)" rel="next"', pages[-1]):
        pages.append(text(admin_client, "/admin/events/event/" + older[0].replace("&amp;", "&")))
    assert [pk for page in pages for pk in ids(page)] == wanted
    back = [pages[-1]]
    while newer := re.findall(r'href="(\?[^"]*p=newer-\d+[^"]*)" rel="prev"', back[-1]):
        back.append(text(admin_client, "/admin/events/event/" + newer[0].replace("&amp;", "&")))
    assert [pk for page in back[::-1] for pk in ids(page)] == wanted


def test_what_is_no_condition_is_said_at_the_field(admin_client: Client, hundred: list[int]) -> None:
    assert "as in payload.user_id=123" in text(admin_client, "/admin/events/event/?payload=n")
    assert "name the fields from the outside" in text(admin_client, "/admin/events/event/?payload=a..b%3D1")


def test_a_search_without_an_index_does_not_ask_for_new_ones(admin_client: Client, hundred: list[int]) -> None:
    assert 'id="newer"' not in text(admin_client, "/admin/events/event/?payload=n%3D7")
    assert 'id="newer"' in text(admin_client, "/admin/events/event/")


@pytest.mark.django_db(transaction=True)
def test_with_an_index_it_is_a_filter_like_the_others(admin_client: Client, hundred: list[int]) -> None:
    payload_search.create_index(("n",))
    try:
        page = text(admin_client, "/admin/events/event/?payload=n%3D7")
        assert ids(page) == [hundred[92]]
        assert "Looked at" not in page
    finally:
        payload_search.drop_index(("n",))


def test_what_matches_is_exported(admin_client: Client, hundred: list[int]) -> None:
    answer: Any = admin_client.get("/admin/events/event/export.ndjson?payload=user.id%3D2")
    assert len(b"".join(answer.streaming_content).splitlines()) == 33


@pytest.mark.django_db
def test_a_duplicate_of_an_erased_event_says_so(admin_client: Client, publish: Publish, drain: Drain) -> None:
    publish([event("1", payload={"name": "Ada"}), event("1", payload={"name": "Augusta"})])
    drain()
    erase("t", "1", by="the operator")
    page = admin_client.get(f"/admin/events/duplicate/{Duplicate.objects.get().pk}/change/").content.decode()
    assert "Erased for good by" in page
    assert "the operator" in page
    assert "Download it" not in page
