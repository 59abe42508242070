"""API keys: what they open, what they keep shut, and what is kept of them."""

import json
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.test import Client, RequestFactory
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings

from events import keys, store
from events.api.publish import PublishView
from events.models import ApiKey, Batch
from publisher import Client as Publisher
from tests.conftest import event

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]

#: What REQUIRE_API_KEY closes.
CLOSED = ["/events", "/stats", "/batches/1", "/docs", "/schema", "/metrics"]


@pytest.fixture(autouse=True)
def _closed(settings: Settings) -> None:
    settings.REQUIRE_API_KEY = True


class Caller:
    """Somebody with a key, or without one."""

    def __init__(self, *scopes: str, topics: list[str] | None = None, key: str = "") -> None:
        self.row: Any = None
        if scopes:
            self.row, key = keys.create(
                "test", may_publish="publish" in scopes, may_read="read" in scopes, topics=topics or []
            )
        self.key = key
        self.headers = {"Authorization": f"Api-Key {key}"} if key else {}

    def get(self, url: str, **headers: str) -> Any:
        return Client().get(url, headers={**self.headers, **headers})

    def publish(self, *events: dict[str, Any], **headers: str) -> Any:
        body = json.dumps(list(events))
        return Client().post("/publish", body, content_type="application/json", headers={**self.headers, **headers})


# --- What is kept -----------------------------------------------------------------------------------------------------


def test_the_key_itself_is_kept_nowhere() -> None:
    key = Caller("read").key
    secret = key.partition(".")[2]
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM events_apikey")
        assert secret not in repr(cursor.fetchall())
    assert len(secret) == 32


def test_keys_differ_and_are_told_apart_by_their_first_eight_characters() -> None:
    one, other = Caller("read"), Caller("read")
    assert one.key[:8] == one.row.prefix != other.row.prefix


@pytest.mark.parametrize("topics", [[""], ["orders.", ""]])
def test_a_beginning_that_would_open_everything_by_mistake_is_refused(topics: list[str]) -> None:
    with pytest.raises(ValueError, match="every topic"):
        keys.create("test", may_publish=True, may_read=False, topics=topics)


def test_a_key_that_opens_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="opens nothing"):
        keys.create("test", may_publish=False, may_read=False)


# --- Doors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CLOSED)
def test_without_a_key_it_is_a_401_that_says_what_to_send(path: str) -> None:
    answer = Caller().get(path)
    assert answer.status_code == 401
    assert answer["WWW-Authenticate"].startswith("Api-Key")
    assert "Authorization: Api-Key" in answer.json()["detail"]


def test_without_a_key_nothing_is_published_or_even_read() -> None:
    answer = Client().post("/publish", b"{no json", content_type="application/json")
    assert answer.status_code == 401
    assert not Batch.objects.exists()


@pytest.mark.parametrize("path", CLOSED)
def test_a_reader_gets_in(path: str) -> None:
    assert Caller("read").get(path).status_code == (404 if path == "/batches/1" else 200)


def test_health_stays_open_and_says_nothing_else() -> None:
    answer = Caller().get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "healthy"})


@pytest.mark.parametrize(
    "header",
    ["", "Api-Key", "Api-Key ", "Api-Key nonsense", "Basic YTpi", "Api-Key aaaaaaaa.b", "Api-Key \x00", "Api-Key é.é"],
)
def test_what_is_no_key_of_ours_is_a_401(header: str) -> None:
    assert Client().get("/stats", headers={"Authorization": header}).status_code == 401


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Authorization", "Api-Key {}"),
        ("Authorization", "api-key {}"),
        ("Authorization", "Bearer {}"),
        ("Authorization", "bearer  {} "),
        ("X-API-Key", "{}"),
    ],
)
def test_a_key_may_come_in_any_of_three_ways(name: str, value: str) -> None:
    key = Caller("read").key
    assert Client().get("/stats", headers={name: value.format(key)}).status_code == 200
    assert Client().get("/stats", headers={name: value.format("aaaaaaaa.b")}).status_code == 401


def test_the_same_key_twice_is_one_and_two_keys_are_none() -> None:
    one, other = Caller("read").key, Caller("read").key
    same = Client().get("/stats", headers={"Authorization": f"Bearer {one}", "X-API-Key": one})
    assert same.status_code == 200
    differing = Client().get("/stats", headers={"Authorization": f"Bearer {one}", "X-API-Key": other})
    assert differing.status_code == 401
    assert "different API keys" in differing.json()["detail"]


def test_a_proxys_own_log_in_stands_beside_a_key() -> None:
    headers = {"Authorization": "Basic YTpi", "X-API-Key": Caller("read").key}
    assert Client().get("/stats", headers=headers).status_code == 200


def test_both_schemes_are_offered() -> None:
    offered = Caller().get("/stats")["WWW-Authenticate"]
    assert "Api-Key realm=" in offered
    assert "Bearer realm=" in offered


def test_the_right_beginning_with_another_secret_is_a_401() -> None:
    caller = Caller("read")
    assert Caller(key=f"{caller.row.prefix}.{'x' * 32}").get("/stats").status_code == 401


def test_the_header_is_what_the_publisher_sends() -> None:
    caller = Caller("read")
    with Publisher("http://127.0.0.1", api_key=caller.key) as client:
        assert Client().get("/stats", headers={"Authorization": client.headers["Authorization"]}).status_code == 200


def test_a_reader_may_not_publish() -> None:
    answer = Caller("read").publish(event())
    assert answer.status_code == 403
    assert "scope publish" in answer.json()["detail"]
    assert not Batch.objects.exists()


@pytest.mark.parametrize("path", ["/events", "/stats", "/metrics"])
def test_a_publisher_may_not_read(path: str) -> None:
    answer = Caller("publish").get(path)
    assert answer.status_code == 403
    assert "scope read" in answer.json()["detail"]


def test_where_no_key_is_required_none_is_looked_at(settings: Settings) -> None:
    settings.REQUIRE_API_KEY = False
    assert Caller(key="nonsense").publish(event()).status_code == 202
    view = PublishView()
    view.setup(RequestFactory().post("/publish"))
    assert (view.get_authenticators(), view.get_permissions(), view.get_throttles()) == ([], [], [])


# --- Revoking ---------------------------------------------------------------------------------------------------------


def test_a_revoked_key_is_shut_at_once_where_it_was_revoked() -> None:
    caller = Caller("read")
    assert caller.get("/stats").status_code == 200
    assert keys.revoke([caller.row.prefix]) == [caller.row.prefix]
    assert caller.get("/stats").status_code == 401


def test_another_process_notices_after_as_many_seconds_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(keys.time, "monotonic", lambda: now)
    caller = Caller("read")
    assert keys.find(caller.key)
    ApiKey.objects.update(revoked_at=timezone.now())
    now += keys.KNOWN_SECONDS + 0.1
    assert keys.find(caller.key) is None


def test_revoking_twice_or_what_is_none_revokes_nothing() -> None:
    caller = Caller("read")
    keys.revoke([caller.row.prefix])
    assert keys.revoke([caller.row.prefix, "nonsense"]) == []


# --- What it costs ----------------------------------------------------------------------------------------------------


def test_a_key_that_is_known_costs_no_statement(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    caller = Caller("read")
    keys.find(caller.key)
    with django_assert_num_queries(0):
        assert keys.find(caller.key)


def test_guessing_costs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "KNOWN_KEYS", 3)
    for number in range(20):
        keys.find(f"aaaaaaaa.{number}")
    assert len(keys._known._rows) <= 3


def test_the_last_use_is_written_once_in_five_minutes(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    caller = Caller("read")
    keys.find(caller.key)
    first = ApiKey.objects.get().last_used_at
    assert first
    keys._known.forget()
    with django_assert_num_queries(1):
        keys.find(caller.key)
    ApiKey.objects.update(last_used_at=first - keys.LAST_USED_EVERY - timedelta(seconds=1))
    keys._known.forget()
    keys.find(caller.key)
    assert ApiKey.objects.get().last_used_at >= first


def test_a_last_use_that_cannot_be_written_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller("read")

    def locked() -> Any:
        raise OperationalError("database is locked")

    monkeypatch.setattr(keys, "writing", locked)
    assert caller.get("/stats").status_code == 200


# --- Topics -----------------------------------------------------------------------------------------------------------


def test_a_publish_with_one_foreign_topic_is_refused_whole() -> None:
    caller = Caller("publish", topics=["orders.", "carts."])
    answer = caller.publish(
        event("1", "orders.a"), event("2", "users.b"), event("3", "carts.c"), event("4", "Orders.d")
    )
    assert answer.status_code == 403
    assert "2 of 4 events" in answer.json()["detail"]
    assert [(error["index"], error["field"]) for error in answer.json()["errors"]] == [(1, "topic"), (3, "topic")]
    assert "orders. or carts." in answer.json()["errors"][0]["message"]
    assert not Batch.objects.exists()


def test_a_publish_within_its_topics_is_accepted() -> None:
    caller = Caller("publish", topics=["orders."])
    assert caller.publish(event("1", "orders.a"), event("2", "orders.b")).status_code == 202
    assert Batch.objects.get().api_key == caller.row


@pytest.fixture
def two_topics(drain: Drain) -> dict[str, int]:
    """An event and a duplicate under each of orders.a, Orders.b, ordersc and users.d, and the batch of each."""
    caller = Caller("publish")
    batches = {}
    for number, topic in enumerate(["orders.a", "Orders.b", "ordersc", "users.d"]):
        same = event(str(number), topic)
        batches[topic] = caller.publish(same, same).json()["batch_id"]
    drain()
    return batches


def test_a_bound_reader_gets_events_of_its_topics_only(two_topics: dict[str, int]) -> None:
    caller = Caller("read", topics=["orders."])
    page = caller.get("/events").json()
    assert page["count"] == 1
    assert [found["topic"] for found in page["events"]] == ["orders.a"]


@pytest.mark.parametrize(
    "query", ["event_id=3", "source=test", "since=2000-01-01T00:00:00Z", "until=2100-01-01T00:00:00Z"]
)
def test_no_filter_leads_a_bound_reader_elsewhere(two_topics: dict[str, int], query: str) -> None:
    page = Caller("read", topics=["orders."]).get(f"/events?{query}").json()
    assert {found["topic"] for found in page["events"]} <= {"orders.a"}
    assert page["count"] == len(page["events"])


def test_neither_does_the_number_of_a_batch(two_topics: dict[str, int]) -> None:
    page = Caller("read", topics=["orders."]).get(f"/events?batch_id={two_topics['users.d']}").json()
    assert (page["count"], page["events"]) == (0, [])


@pytest.mark.parametrize("kind", ["text/csv", "application/x-ndjson"])
def test_a_stream_is_bound_too(two_topics: dict[str, int], kind: str) -> None:
    answer = Caller("read", topics=["users."]).get("/events", Accept=kind)
    text = b"".join(answer.streaming_content).decode()
    assert "users.d" in text
    assert "rders" not in text


def test_asking_for_a_foreign_topic_is_a_403_that_names_its_own(two_topics: dict[str, int]) -> None:
    answer = Caller("read", topics=["orders."]).get("/events?topic=users.d")
    assert answer.status_code == 403
    assert "orders." in answer.json()["detail"]


def test_a_bound_reader_gets_the_books_of_its_topics_only(two_topics: dict[str, int]) -> None:
    Caller("publish").publish(event("9", "users.d"))
    books = Caller("read", topics=["orders."]).get("/stats").json()
    assert books["by_topic"] == {"orders.a": {"unique_processed": 1, "duplicate_dropped": 1}}
    assert (books["topics"], books["received"], books["pending"]) == (["orders.a"], 2, 0)


def test_a_bound_reader_sees_what_is_pending_of_publishers_within_its_topics() -> None:
    Caller("publish", topics=["orders.eu."]).publish(event("1", "orders.eu.a"))
    Caller("publish", topics=["orders.", "users."]).publish(event("2", "orders.b"))
    books = Caller("read", topics=["orders."]).get("/stats").json()
    assert (books["pending"], books["received"]) == (1, 1)


def test_what_tells_of_every_topic_is_not_for_a_bound_reader() -> None:
    answer = Caller("read", topics=["orders."]).get("/metrics")
    assert answer.status_code == 403


def test_a_beginning_may_hold_what_sql_takes_for_a_pattern(two_topics: dict[str, int]) -> None:
    for beginning in ("%", "_rders", "orders_a", "'"):
        assert Caller("read", topics=[beginning]).get("/events").json()["count"] == 0


# --- Receipts and idempotency keys ------------------------------------------------------------------------------------


def test_a_publisher_reads_its_own_receipts_and_no_others() -> None:
    mine, other = Caller("publish"), Caller("publish")
    location = mine.publish(event())["Location"]
    assert mine.get(location).status_code == 200
    assert other.get(location).status_code == 404


def test_a_receipt_that_is_not_for_a_key_looks_like_none() -> None:
    other = Caller("publish")
    location = Caller("publish").publish(event())["Location"]
    number = location.rpartition("/")[2]
    assert other.get(location).json() == {"detail": other.get("/batches/999").json()["detail"].replace("999", number)}


def test_a_reader_of_every_topic_reads_every_receipt(settings: Settings) -> None:
    location = Caller("publish").publish(event())["Location"]
    settings.REQUIRE_API_KEY = False
    before = Caller().publish(event("2"))["Location"]
    settings.REQUIRE_API_KEY = True
    reader = Caller("read")
    assert [reader.get(location).status_code, reader.get(before).status_code] == [200, 200]


@pytest.mark.parametrize(("topics", "status"), [(["orders.eu."], 200), (["orders.", "users."], 404), ([], 404)])
def test_a_bound_reader_reads_receipts_of_publishers_within_its_topics(topics: list[str], status: int) -> None:
    location = Caller("publish", topics=topics).publish(event("1", "orders.eu.a"))["Location"]
    assert Caller("read", topics=["orders."]).get(location).status_code == status


def test_one_keys_idempotency_key_never_shows_anothers_receipt(settings: Settings) -> None:
    one, other = Caller("publish"), Caller("publish")
    first = one.publish(event("1"), **{"Idempotency-Key": "same"})
    second = other.publish(event("2"), **{"Idempotency-Key": "same"})
    again = one.publish(event("1"), **{"Idempotency-Key": "same"})
    assert second.status_code == 202
    assert again.json()["batch_id"] == first.json()["batch_id"] != second.json()["batch_id"]
    settings.REQUIRE_API_KEY = False
    without = [Caller().publish(event("3"), **{"Idempotency-Key": "same"}).json()["batch_id"] for _ in range(2)]
    assert without[0] == without[1]
    assert Batch.objects.count() == 3


def test_another_body_under_ones_own_idempotency_key_is_still_a_422() -> None:
    caller = Caller("publish")
    caller.publish(event("1"), **{"Idempotency-Key": "same"})
    assert caller.publish(event("2"), **{"Idempotency-Key": "same"}).status_code == 422


# --- Pages of people --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/docs", "/schema"])
def test_who_is_logged_in_to_the_admin_may_see_the_docs(path: str) -> None:
    client = Client()
    client.force_login(User.objects.create_user("operator", is_staff=True))
    assert client.get(path).status_code == 200


def test_an_account_that_may_not_log_in_to_the_admin_may_not() -> None:
    client = Client()
    client.force_login(User.objects.create_user("stranger"))
    assert client.get("/docs").status_code == 401


def test_being_logged_in_opens_nothing_else() -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    assert client.get("/events").status_code == 401


def test_the_schema_has_the_key(settings: Settings) -> None:
    schema = Caller("read").get("/schema", Accept="application/json").json()
    assert schema["components"]["securitySchemes"]["ApiKey"]["name"] == "Authorization"
    # Any one of them.
    assert schema["paths"]["/publish"]["post"]["security"] == [{"ApiKey": []}, {"Bearer": []}, {"XApiKey": []}]
    assert schema["components"]["securitySchemes"]["Bearer"]["scheme"] == "bearer"
    assert schema["components"]["securitySchemes"]["XApiKey"]["name"] == "X-API-Key"
    assert "security" not in schema["paths"]["/health"]["get"]


# --- The command ------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command("apikey", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_the_command_makes_a_key_that_opens_what_it_says() -> None:
    out, err = command("create", "shop", "publish", "--topic", "orders.", "--topic", "carts.")
    caller = Caller(key=out.strip())
    assert caller.publish(event("1", "carts.a")).status_code == 202
    assert caller.publish(event("1", "users.a")).status_code == 403
    assert "once only" in err


def test_the_list_has_every_key_and_no_secret() -> None:
    out, _ = command("create", "shop", "publish", "read", "--topic", "[red]orders.")
    listed, _ = command("list")
    assert "shop" in listed
    assert "[red]orders." in listed
    assert out.partition(".")[2].strip() not in listed


def test_the_command_revokes_by_the_beginning_of_a_key() -> None:
    out, _ = command("create", "shop", "read")
    said, _ = command("revoke", out.strip())
    assert "revoked" in said
    assert Caller(key=out.strip()).get("/stats").status_code == 401
    with pytest.raises(CommandError, match="no such key"):
        command("revoke", out[:8])


# --- The admin --------------------------------------------------------------------------------------------------------


def test_the_admin_shows_a_new_key_on_one_page_and_nowhere_else(admin_client: Client) -> None:
    answer = admin_client.post(
        "/admin/events/apikey/add/", {"name": "shop", "may_publish": "on", "beginnings": "orders.\n\n carts. \n"}
    )
    row = ApiKey.objects.get()
    key = answer.context["key"]
    assert key in answer.content.decode()
    assert (row.topics, row.scopes) == (["orders.", "carts."], ["publish"])
    assert Caller(key=key).publish(event("1", "orders.a")).status_code == 202
    secret = key.partition(".")[2]
    for page in ("/admin/events/apikey/", f"/admin/events/apikey/{row.pk}/change/", "/admin/"):
        assert secret not in admin_client.get(page, follow=True).content.decode()
    assert secret not in repr(list(LogEntry.objects.values()))
    assert "no-store" in answer["Cache-Control"]


def test_the_admin_refuses_a_key_that_opens_nothing(admin_client: Client) -> None:
    answer = admin_client.post("/admin/events/apikey/add/", {"name": "shop", "beginnings": ""})
    assert "opens nothing" in answer.content.decode()
    assert not ApiKey.objects.exists()


def test_the_admin_revokes_and_says_who_did(admin_client: Client) -> None:
    caller = Caller("read")
    admin_client.post("/admin/events/apikey/", {"action": "revoke", "_selected_action": [caller.row.pk]})
    assert caller.get("/stats").status_code == 401
    assert LogEntry.objects.get().change_message == "Revoked."


def test_a_key_cannot_be_changed_or_deleted_in_the_admin(admin_client: Client) -> None:
    caller = Caller("read", topics=["orders."])
    admin_client.post(f"/admin/events/apikey/{caller.row.pk}/change/", {"name": "shop", "may_publish": "on"})
    admin_client.post(f"/admin/events/apikey/{caller.row.pk}/delete/", {"post": "yes"})
    assert (ApiKey.objects.get().scopes, ApiKey.objects.get().topics) == (["read"], ["orders."])


def test_who_may_only_look_at_keys_makes_and_revokes_none(client: Client) -> None:
    from django.contrib.auth.models import Permission

    user = User.objects.create_user("looker", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_apikey"))
    client.force_login(user)
    caller = Caller("read")
    assert client.post("/admin/events/apikey/add/", {"name": "x", "may_read": "on"}).status_code == 403
    client.post("/admin/events/apikey/", {"action": "revoke", "_selected_action": [caller.row.pk]})
    assert caller.get("/stats").status_code == 200


def test_the_admin_shows_when_a_key_was_last_used(admin_client: Client) -> None:
    caller = Caller("read")
    caller.get("/stats")
    used = ApiKey.objects.get().last_used_at
    assert used
    assert used.isoformat() in admin_client.get("/admin/events/apikey/").content.decode()
