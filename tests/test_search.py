"""Claims about the search of every page of the admin (Ctrl-K): what it finds, for whom, and that indexes serve it."""

import html
import re
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from events import store
from events.models import Batch, Event, Pruned
from tests.conftest import Publish, event

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]


@pytest.fixture
def stored(publish: Publish, drain: Drain) -> int:
    """A batch of three events with a request id of its caller's; returns its number."""
    several = [event("Order-1"), event("Order-2", topic="orders.placed"), event("x", source="shop-web")]
    number: int = publish(several, **{"X-Request-ID": "checkout-77"}).json()["batch_id"]
    drain()
    return number


def search(client: Client, words: str) -> str:
    answer = client.get("/admin/search/", {"s": words, "extended": "1"})
    assert answer.status_code == 200
    return answer.content.decode()


def found(page: str) -> list[tuple[str, str]]:
    """The title and the address of each hit, in order."""
    hits = re.findall(r'href="([^"]*)"\s+data-title="([^"]*)"', page)
    return [(html.unescape(title), html.unescape(link)) for link, title in hits]


@pytest.mark.parametrize("words", ["Order-1", "Order-", "Ord"])
def test_events_are_found_by_their_id_or_its_beginning(admin_client: Client, stored: int, words: str) -> None:
    first = Event.objects.get(event_id="Order-1")
    assert ("Order-1", f"/admin/events/event/{first.pk}/change/") in found(search(admin_client, words))


def test_an_id_under_two_topics_is_two_events(admin_client: Client, publish: Publish, drain: Drain) -> None:
    publish([event("same", topic="a"), event("same", topic="b")])
    drain()
    assert [title for title, _ in found(search(admin_client, "same"))] == ["same", "same"]


def test_capital_and_small_letters_differ_also_a_moment_later(admin_client: Client, stored: int) -> None:
    assert found(search(admin_client, "order-1")) == []
    assert len(found(search(admin_client, "Order-1"))) == 1
    assert found(search(admin_client, "order-1")) == []


def test_wildcards_are_letters(admin_client: Client, stored: int) -> None:
    for words in ("%", "Order_", "_rder"):
        assert found(search(admin_client, words)) == []


def test_topics_and_sources_are_found(admin_client: Client, stored: int) -> None:
    assert ("orders.placed", "/admin/events/topictotal/?q=orders.placed") in found(search(admin_client, "orders."))
    assert ("shop-web", "/admin/events/sourcetotal/?q=shop-web") in found(search(admin_client, "shop"))


@pytest.mark.parametrize("words", ["checkout-77", "checkout"])
def test_a_batch_is_found_by_its_request_id(admin_client: Client, stored: int, words: str) -> None:
    assert found(search(admin_client, words)) == [(f"Batch {stored}", f"/admin/events/batch/{stored}/change/")]


def test_a_batch_that_waits_is_found_by_its_request_id(admin_client: Client, publish: Publish) -> None:
    number = publish(event(), **{"X-Request-ID": "waits-1"}).json()["batch_id"]
    assert found(search(admin_client, "waits")) == [(f"Batch {number}", f"/admin/events/batch/{number}/change/")]
    page = admin_client.get("/admin/events/batch/?request_id=waits").content.decode()
    assert f"/admin/events/batch/{number}/change/" in page


def test_a_batch_is_found_by_its_number(admin_client: Client, stored: int) -> None:
    assert (f"Batch {stored}", f"/admin/events/batch/{stored}/change/") in found(search(admin_client, f" {stored} "))


def test_a_dead_letter_is_called_one(admin_client: Client, stored: int) -> None:
    Batch.objects.update(status=Batch.Status.FAILED)
    assert "Dead letter" in search(admin_client, str(stored))


def test_pages_are_found_by_their_name(admin_client: Client) -> None:
    assert found(search(admin_client, "api k")) == [("API keys", "/admin/events/apikey/")]


def test_more_than_are_shown_lead_to_the_list(admin_client: Client, publish: Publish, drain: Drain) -> None:
    publish([event(f"many&{n}") for n in range(9)])
    drain()
    hits = found(search(admin_client, "many&"))
    assert len(hits) == 6
    assert hits[-1] == ("More events: many&…", "/admin/events/event/?event_id=many%26")


@pytest.mark.parametrize("words", ["nowhere", "9" * 30, "99999999", "x" * 300, "nul\0", "<script>alert(1)</script>"])
def test_nothing_found_is_said(admin_client: Client, stored: int, words: str) -> None:
    page = search(admin_client, words)
    assert found(page) == []
    # unfold takes the element of this id out of the answer, and shows nothing where there is none.
    assert re.search(r'<div id="command-results-list"[^>]*>\s*<p>Nothing found for', page)
    assert "<script>" not in page


def test_what_has_expired_is_not_found(admin_client: Client, stored: int) -> None:
    last = Event.objects.order_by("-pk").values_list("pk", flat=True)[0]
    Pruned.objects.update_or_create(pk=1, defaults={"expired_through": last})
    assert found(search(admin_client, "Order-1")) == []


def test_what_is_listed_is_found_behind_what_has_expired(admin_client: Client, publish: Publish, drain: Drain) -> None:
    publish([event(f"k-{n}") for n in range(8)])
    drain()
    last = Event.objects.order_by("-pk").values_list("pk", flat=True)[0]
    Pruned.objects.update_or_create(pk=1, defaults={"expired_through": last})
    publish(event("k-9"))
    drain()
    assert [title for title, _ in found(search(admin_client, "k-"))] == ["k-9"]
    # But not behind any number of them.
    with patch("events.admin.search.COMPARED", 5):
        assert found(search(admin_client, "k-")) == []


def test_large_bodies_that_wait_are_not_read(admin_client: Client, publish: Publish) -> None:
    publish(event("1"), **{"X-Request-ID": "small"})
    publish(event("2", payload={"text": "x" * 9000}), **{"X-Request-ID": "large"})
    with patch("events.admin.filters.OPEN_BYTES", 8000):
        assert len(found(search(admin_client, "small"))) == 1
        assert found(search(admin_client, "large")) == []


@pytest.mark.parametrize(
    ("permission", "titles"),
    [
        ("view_event", {"Order-1", "Order-2"}),
        ("view_topictotal", {"Order-topic"}),
        ("view_sourcetotal", {"Order-source"}),
        ("view_batch", {"Batch"}),
        (None, set()),
    ],
)
def test_nobody_finds_what_they_may_not_view(
    client: Client, publish: Publish, drain: Drain, permission: str | None, titles: set[str]
) -> None:
    publish(
        [event("Order-1", topic="Order-topic"), event("Order-2", source="Order-source")], **{"X-Request-ID": "Order-r"}
    )
    drain()
    user = User.objects.create_user("viewer", is_staff=True)
    client.force_login(user)
    if permission:
        user.user_permissions.add(Permission.objects.get(codename=permission))
    assert {re.sub(r"^Batch \d+$", "Batch", title) for title, _ in found(search(client, "Order-"))} == titles
    user.user_permissions.clear()
    assert found(search(client, "Order-")) == []


def test_strangers_are_sent_to_the_login(client: Client) -> None:
    assert client.get("/admin/search/?s=x").status_code == 302


def test_it_works_without_a_cache(admin_client: Client, stored: int, settings: Any) -> None:
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://[::1]:1"}
    }
    assert len(found(search(admin_client, "Order-1"))) == 1


@pytest.mark.parametrize("words", ["evt-3", "evt-", "t", "s1", "7", "req-3", "nowhere"])
def test_indexes_serve_it(admin_client: Client, publish: Publish, drain: Drain, words: str) -> None:
    for n in range(30):
        publish(
            [event(f"evt-{n}-{m}", topic=f"t{m}", source=f"s{m}") for m in range(20)], **{"X-Request-ID": f"req-{n}"}
        )
    drain()
    with connection.cursor() as cursor:
        # Small tables are cheapest read whole.
        cursor.execute("ANALYZE" if connection.vendor == "sqlite" else "SET LOCAL enable_seqscan = off")
    with CaptureQueriesContext(connection) as queries:
        search(admin_client, words)
    of_many = [query["sql"] for query in queries if re.search(r'FROM "events_(event|batch)"', query["sql"])]
    assert of_many
    for sql in of_many:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {'QUERY PLAN ' if connection.vendor == 'sqlite' else ''}{sql}")
            for *_, step in cursor.fetchall():
                assert not re.search(r"SCAN events_(event|batch)$|Seq Scan on events_(event|batch)", step), sql
