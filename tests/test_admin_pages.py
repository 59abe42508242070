"""Claims about pages of people beside the lists: log-in, a new key, errors, and whether the service is ready."""

import html
import re
import shlex
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from events.dashboard import WINDOWS
from events.models import ApiKey, Batch
from tests.conftest import Publish, event

pytestmark = pytest.mark.django_db

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


# --- Log-in -----------------------------------------------------------------------------------------------------------


def test_the_login_says_where_the_first_password_is(client: Client) -> None:
    page = client.get("/admin/login/").content.decode()
    assert "make up" in page
    assert "manage.py changepassword admin" in page


def test_a_wrong_password_is_said_once(client: Client) -> None:
    page = client.post("/admin/login/", {"username": "admin", "password": "wrong"}).content.decode()
    assert page.count("errornote") == 1
    assert "Please correct" not in page


def test_who_is_locked_out_gets_a_page(client: Client, settings: Any) -> None:
    settings.AXES_ENABLED = True
    for _ in range(settings.AXES_FAILURE_LIMIT):
        answer = client.post("/admin/login/", {"username": "admin", "password": "wrong"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "900")
    assert "Try again in 15 minutes" in answer.content.decode()
    assert "events/page.css" in answer.content.decode()


# --- Menu -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "title"), [("/admin/", "Dashboard"), ("/admin/events/event/", "Events")])
def test_the_menu_marks_the_current_page_and_no_other(admin_client: Client, path: str, title: str) -> None:
    groups = admin_client.get(path).context["sidebar_navigation"]
    assert [item["title"] for group in groups for item in group["items"] if item["active"]] == [title]


# --- API keys ---------------------------------------------------------------------------------------------------------


def test_no_key_yet_leads_to_the_first(admin_client: Client) -> None:
    page = admin_client.get("/admin/events/apikey/").content.decode()
    assert "No API key yet" in page
    assert re.search(r'<a class="button button-main" href="/admin/events/apikey/add/">', page)


@pytest.mark.parametrize("topic", ["", "it's. "])
def test_a_new_key_comes_with_a_command_that_publishes(
    admin_client: Client, publish: Publish, topic: str, settings: Any
) -> None:
    settings.ALLOWED_HOSTS = ["events.example"]
    settings.REQUIRE_API_KEY = True
    page = admin_client.post(
        "/admin/events/apikey/add/",
        {"name": "shop", "may_publish": "on", "beginnings": topic},
        headers={"Host": "events.example:8443"},
    ).content.decode()
    assert 'data-copy="new-key"' in page
    words = shlex.split(html.unescape(re.search(r'id="new-key-curl">(.*?)</code>', page, re.DOTALL)[1]))  # type: ignore[index]
    assert words[:2] == ["curl", "http://events.example:8443/publish"]
    sent = dict(word.split(": ") for word in words if ": " in word and not word.startswith("{"))
    key = {"Authorization": sent["Authorization"], "Host": "events.example"}
    answer = publish(words[-1].encode(), content_type=sent["Content-Type"], **key)
    assert answer.status_code == 202, answer.content


def test_a_key_that_only_reads_comes_with_a_command_that_reads(admin_client: Client) -> None:
    page = admin_client.post("/admin/events/apikey/add/", {"name": "x", "may_read": "on"}).content.decode()
    assert "http://testserver/events?limit=1" in html.unescape(page)
    assert ApiKey.objects.get().may_publish is False


# --- Batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_shows_its_request_id(admin_client: Client, publish: Publish) -> None:
    number = publish(event(), **{"X-Request-ID": "checkout-9"}).json()["batch_id"]
    assert "checkout-9" in admin_client.get(f"/admin/events/batch/{number}/change/").content.decode()


def test_what_has_failed_for_good_is_called_a_dead_letter(admin_client: Client, publish: Publish) -> None:
    publish(event())
    Batch.objects.update(status=Batch.Status.FAILED)
    for address in ("/admin/", "/admin/events/batch/", "/admin/events/batch/?status=failed"):
        page = admin_client.get(address).content.decode()
        assert re.search("dead letter", page, re.IGNORECASE), address
        assert not re.search(r">\s*failed\s*<", page, re.IGNORECASE), address


# --- The dashboard ----------------------------------------------------------------------------------------------------


def test_lines_of_an_hour_are_not_shown_under_the_day(admin_client: Client, publish: Publish, drain: Any) -> None:
    publish(event())
    drain()
    shown = {name: "Last hour</th>" in admin_client.get(f"/admin/?window={name}").content.decode() for name in WINDOWS}
    assert shown == {"hour": True, "day": False}


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_a_page_for_a_browser(admin_client: Client) -> None:
    for address in ("/admin/events/event/5/change/", "/admin/nowhere/", "/nowhere"):
        answer = admin_client.get(address, headers=BROWSER)
        page = answer.content.decode()
        assert answer.status_code == 404
        assert "events/page.css" in page
        assert 'href="/admin/"' in page
    assert "There is no event 5" in admin_client.get("/admin/events/event/5/change/").content.decode()


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_what_is_not_there_is_json_for_everybody_else(client: Client, accept: str) -> None:
    assert client.get("/nowhere", headers={"Accept": accept}).json()["detail"].startswith("There is nothing at")


def test_a_host_that_is_not_ours_is_a_page_in_a_browser(client: Client) -> None:
    answer = client.get("/admin/", headers={**BROWSER, "Host": "elsewhere.example"})
    assert answer.status_code == 400
    assert "events/page.css" in answer.content.decode()


def test_an_address_that_is_shown_is_escaped(client: Client) -> None:
    page = client.get("/<script>alert(1)", headers=BROWSER).content.decode()
    assert "<script>" not in page


def test_what_is_forbidden_is_a_page(client: Client) -> None:
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_batch"))
    client.force_login(user)
    answer = client.get("/admin/events/event/")
    assert answer.status_code == 403
    assert "Not for this account" in answer.content.decode()


def test_a_form_without_its_token_is_a_page(admin_user: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    answer = client.post("/admin/events/batch/1/replay")
    assert answer.status_code == 403
    assert "Nothing was changed" in answer.content.decode()


def test_a_mistake_of_ours_is_a_page_without_the_database(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin_client.raise_request_exception = False
    monkeypatch.setattr("events.admin.site.snapshot", lambda window: 1 / 0)
    answer = admin_client.get("/admin/")
    assert answer.status_code == 500
    assert "Something went wrong here" in answer.content.decode()


# --- Empty lists ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["event", "duplicate", "batch"])
def test_an_empty_list_leads_on(admin_client: Client, name: str) -> None:
    page = admin_client.get(f"/admin/events/{name}/").content.decode()
    assert re.search(r'<a class="button" href="/docs">', page)
    assert admin_client.get("/docs").status_code == 200
