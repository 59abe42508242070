"""/: a start page for people, who log in first where keys are required, and an index for programs."""

import html
import re
import shlex
from collections.abc import Callable
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import pytest
from django.contrib.auth.models import Permission, User
from django.db import DatabaseError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from events import health, store
from events.models import Batch, Event
from tests.conftest import Publish, event

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
#: A topic that would run, one that turns what follows it around, and one that no line breaks.
HOSTILE = ["<script>alert(1)</script>", "gnp.\u202eexe\x1b[2J", "x" * 255]


@pytest.fixture(autouse=True)
def parts() -> Any:
    """What the parts of the service say; there are none here."""
    found = [health.Part(name, "ok", "", 1.0) for name in health.CHECKS]
    with patch("events.api.index.health.report", lambda: health.Report(found)):
        yield found


def page(client: Client, path: str = "/", **headers: str) -> str:
    answer = client.get(path, headers={"Accept": BROWSER, **headers})
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/html")
    return answer.content.decode()


def counts(text: str) -> dict[str, str]:
    return dict(re.findall(r'data-count="(\w+)">([^<]*)<', text))


# --- For programs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["application/json", "*/*", None])
def test_programs_get_an_index(client: Client, accept: str | None) -> None:
    answer = client.get("/", headers={"Accept": accept} if accept else {})
    assert answer["Content-Type"] == "application/json"
    assert "Accept" in answer["Vary"]
    index = answer.json()
    assert index["authentication"] is None
    assert index["links"]["publish"] == "http://testserver/publish"


def test_every_link_of_the_index_leads_somewhere(client: Client) -> None:
    links = client.get("/").json()["links"]
    assert links.pop("flower") == "http://testserver:5555"
    assert client.get(links.pop("publish")).status_code == 405
    for name, link in links.items():
        assert client.get(link).status_code != 404, name


def test_the_index_is_open_and_says_how_to_authenticate(client: Client, settings: Settings) -> None:
    settings.REQUIRE_API_KEY = True
    answer = client.get("/", headers={"Authorization": "Api-Key wrong"})
    assert answer.status_code == 200
    assert answer.json()["authentication"] == "Authorization: Api-Key <key>"


def test_what_is_neither_is_a_406(client: Client) -> None:
    assert client.get("/", headers={"Accept": "image/png"}).status_code == 406


# --- For people -------------------------------------------------------------------------------------------------------


def test_the_page_shows_counts_and_the_ten_events_that_were_stored_last(
    client: Client, publish: Publish, drain: Drain
) -> None:
    publish([event(f"number {n:02}") for n in range(12)] + [event("number 00")])
    drain()
    publish(event("waits"))
    text = page(client)
    assert counts(text) == {"received": "14", "stored": "12", "duplicates": "1", "pending": "1", "failed": "0"}
    assert re.findall(r'class="id"[^>]*>([^<]+)<', text) == [f"number {n:02}" for n in range(11, 1, -1)]


def test_before_the_first_event_the_page_begins_with_how_to_send_one(
    client: Client, publish: Publish, drain: Drain
) -> None:
    text = page(client)
    assert "Nothing has arrived yet" in text
    assert text.index("curl") < text.index('id="counts"')
    publish(event())
    drain()
    text = page(client)
    assert "Nothing has arrived yet" not in text
    assert text.index("curl") > text.index('id="counts"')


def example(text: str) -> list[str]:
    """The words of the command, as a shell would read them."""
    [code] = re.findall(r'id="example"><code>(.*?)</code>', text, re.DOTALL)
    return shlex.split(html.unescape(code).replace("\\\n", ""))


def test_the_command_works_as_pasted_and_once_more_is_dropped(client: Client, publish: Publish, drain: Drain) -> None:
    words = example(page(client, Host="localhost:1234"))
    assert words[:2] == ["curl", "http://localhost:1234/publish"]
    assert words[words.index("-H") + 1] == "Content-Type: application/json"
    body = words[words.index("-d") + 1].encode()
    for _ in range(2):
        assert publish(body).status_code == 202
        drain()
    assert (counts(page(client))["stored"], counts(page(client))["duplicates"]) == ("1", "1")
    assert example(page(client)) != words, "the next visitor's first event is new as well"


def test_the_command_has_the_scheme_that_the_page_came_by(client: Client) -> None:
    answer = client.get("/", secure=True, headers={"Accept": BROWSER, "Host": "localhost"})
    assert example(answer.content.decode())[1] == "https://localhost/publish"


@pytest.mark.parametrize("text", HOSTILE)
def test_what_publishers_sent_is_shown_and_does_nothing(
    client: Client, publish: Publish, drain: Drain, text: str
) -> None:
    publish(event(text, text, source=text))
    drain()
    for path in ("/", "/overview"):
        shown = page(client, path)
        assert "<script>alert" not in shown
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown)
    assert f"?topic={quote(text, safe='')}&amp;event_id={quote(text, safe='')}" in shown


def test_an_event_leads_to_its_page_for_who_is_logged_in_and_to_its_json_for_others(
    client: Client, admin_client: Client, publish: Publish, drain: Drain
) -> None:
    publish(event("a b", "c&d"))
    drain()
    [link] = re.findall(r'class="row" href="([^"]+)"', page(client))
    assert client.get(link.replace("&amp;", "&")).json()["count"] == 1
    [link] = re.findall(r'class="row" href="([^"]+)"', page(admin_client))
    assert admin_client.get(link).status_code == 200
    assert link.startswith("/admin/")


def test_there_is_an_icon_for_answers_that_are_no_pages(client: Client) -> None:
    answer = client.get("/favicon.ico")
    assert client.get(answer["Location"])["Content-Type"] == "image/svg+xml"


def test_flower_is_there_only_where_it_runs(client: Client, settings: Settings) -> None:
    settings.FLOWER_PORT = 5678
    assert "http://testserver:5678" in page(client)
    settings.NO_FLOWER = True
    assert "Flower" not in page(client)
    assert "flower" not in client.get("/").json()["links"]


# --- Whether all is well ----------------------------------------------------------------------------------------------


def test_all_is_well(client: Client) -> None:
    assert "All is well" in page(client)


@pytest.mark.parametrize("name", health.CHECKS)
def test_what_is_wrong_is_said_in_words(client: Client, parts: list[health.Part], name: str) -> None:
    index = list(health.CHECKS).index(name)
    parts[index] = health.Part(name, "down", "this is <b>why</b>", 1.0)
    text = page(client)
    assert "All is well" not in text
    assert "Something is wrong" in text
    assert "this is &lt;b&gt;why&lt;/b&gt;" in text


def test_a_dead_letter_is_wrong_and_leads_to_where_it_is_mended(
    client: Client, admin_client: Client, publish: Publish
) -> None:
    publish([event("1"), event("2")])
    Batch.objects.update(status="failed")
    text = page(client)
    assert "2 events could not be stored" in text
    [link] = re.findall(r'href="([^"]+)">Replay or discard', text)
    assert admin_client.get(link).status_code == 200


def test_the_page_is_there_without_a_database(client: Client, parts: list[health.Part]) -> None:
    parts[0] = health.Part("database", "down", "connection refused", 1.0)
    with patch("events.api.index.stats.books", side_effect=DatabaseError("away")):
        text = page(client)
    assert "The database does not answer" in text
    assert counts(text)["received"] == "–"
    assert "cannot be read at the moment" in text


@pytest.fixture
def no_sessions(admin_client: Client) -> Any:
    """The database goes away once somebody has logged in."""
    with patch("django.contrib.sessions.backends.db.SessionStore.load", side_effect=DatabaseError("away")):
        yield


@pytest.mark.usefixtures("no_sessions")
def test_who_is_logged_in_does_not_matter_to_an_open_page(admin_client: Client) -> None:
    assert "data-count" in page(admin_client)
    assert admin_client.get("/overview").status_code == 200


@pytest.mark.usefixtures("no_sessions")
def test_without_a_database_nobody_is_told_to_be_logged_out(
    admin_client: Client, parts: list[health.Part], settings: Settings
) -> None:
    settings.REQUIRE_API_KEY = True
    parts[0] = health.Part("database", "down", "connection refused", 1.0)
    assert "The database does not answer" in page(admin_client)
    assert admin_client.get("/overview").status_code == 503


# --- Where keys are required ------------------------------------------------------------------------------------------


@pytest.fixture
def closed(settings: Settings) -> None:
    settings.REQUIRE_API_KEY = True


@pytest.mark.usefixtures("closed")
def test_strangers_are_asked_to_log_in_and_see_nothing_else(client: Client) -> None:
    now = timezone.now()
    Event.objects.create(
        topic="secret", event_id="1", source="s", payload="{}", timestamp=now, received_at=now, batch_id=1
    )
    text = page(client)
    assert 'href="/admin/login/?next=%2F"' in text
    assert "manage.py apikey create" in text
    assert "Authorization: Api-Key" in text
    assert "secret" not in text
    assert "data-count" not in text


@pytest.mark.usefixtures("closed")
def test_strangers_do_not_learn_why_something_is_wrong(client: Client, parts: list[health.Part]) -> None:
    parts[0] = health.Part("database", "down", "no route to 10.1.2.3", 1.0)
    text = page(client)
    assert "The database does not answer" in text
    assert "10.1.2.3" not in text


@pytest.mark.usefixtures("closed")
def test_who_is_logged_in_sees_it_all(admin_client: Client) -> None:
    text = page(admin_client)
    assert counts(text)["received"] == "0"
    assert "$AGGREGATOR_API_KEY" in text
    assert admin_client.get("/admin/events/apikey/add/").status_code == 200
    assert 'href="/admin/events/apikey/add/"' in text
    assert 'href="/metrics"' not in text, "it needs a key, which a browser does not send"


@pytest.mark.usefixtures("closed")
def test_an_account_sees_what_it_may(client: Client) -> None:
    user = User.objects.create_user("guest", is_staff=True)
    client.force_login(user)
    assert "may not see events" in page(client)
    assert client.get("/overview").status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_event"))
    assert "data-count" in page(client)
    client.force_login(User.objects.create_user("stranger"))
    assert "Log in to look inside" in page(client)


@pytest.mark.usefixtures("closed")
def test_logging_in_leads_back_to_the_page(client: Client) -> None:
    User.objects.create_superuser("operator", password="right")
    [login] = re.findall(r'href="(/admin/login/[^"]+)"', page(client))
    [action] = re.findall(r'<form action="([^"]+)"', client.get(login).content.decode())
    answer = client.post(action, {"username": "operator", "password": "right"})
    assert answer["Location"] == "/"


@pytest.mark.usefixtures("closed")
def test_the_docs_ask_people_to_log_in_too(client: Client) -> None:
    answer = client.get("/docs", headers={"Accept": BROWSER})
    assert answer.status_code == 401
    assert 'href="/admin/login/?next=%2Fdocs"' in answer.content.decode()
    answer = client.get("/docs", headers={"Accept": "*/*"})
    assert (answer.status_code, answer["Content-Type"]) == (401, "application/json")


@pytest.mark.usefixtures("closed")
def test_a_page_whose_reader_was_logged_out_is_told_so(client: Client) -> None:
    assert client.get("/overview", headers={"Accept": "application/json"}).status_code == 401


# --- What it costs ----------------------------------------------------------------------------------------------------


def test_what_has_not_changed_is_not_sent_again(client: Client, publish: Publish, drain: Drain) -> None:
    etag = client.get("/overview")["ETag"]
    answer = client.get("/overview", headers={"If-None-Match": etag})
    assert (answer.status_code, answer.content) == (304, b"")
    publish(event())
    drain()
    answer = client.get("/overview", headers={"If-None-Match": etag})
    assert (answer.status_code, answer["ETag"] != etag) == (200, True)


@pytest.mark.parametrize("path", ["/", "/overview"])
def test_no_proxy_keeps_it(client: Client, path: str) -> None:
    answer = client.get(path, headers={"Accept": "text/html"})
    assert {"private", "no-cache"} <= {word.strip() for word in answer["Cache-Control"].split(",")}


def test_it_costs_the_same_however_many_events_there_are(client: Client, publish: Publish, drain: Drain) -> None:
    measured = []
    for number in (10, 500):
        publish([event(f"{number}-{n}") for n in range(number)])
        drain()
        with CaptureQueriesContext(connection) as queries:
            answer = client.get("/overview")
        measured.append((len(queries), answer.content.count(b"data-id")))
        for query in queries:
            assert '"payload"' not in query["sql"]
            if f'FROM "{Event._meta.db_table}"' in query["sql"]:
                assert query["sql"].endswith("LIMIT 10")
    assert measured == [(3, 10), (3, 10)]


def test_a_publish_pays_for_no_session(publish: Publish) -> None:
    assert "Vary" not in publish(event())


def test_the_rate_holds_for_the_page_as_well(client: Client, settings: Settings) -> None:
    settings.THROTTLE_RATE = "1/day"
    assert client.get("/overview").status_code == 200
    assert client.get("/overview").status_code == 429
