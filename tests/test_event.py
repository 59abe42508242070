"""GET and DELETE /events/{id}: one event as the list has it, and its payload erased by who may erase."""

from collections.abc import Callable

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from events import erasure, keys, store
from events.audit import audit
from events.models import Batch, Erasure, Event, Pruned
from tests.conftest import Publish, event
from tests.test_store import broken

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]


@pytest.fixture
def pk(publish: Publish, drain: Drain) -> int:
    publish([event("1", topic="people.ada", payload={"name": "Ada"})])
    drain()
    return Event.objects.get().pk


def key(*scopes: str, topics: list[str] | None = None) -> dict[str, str]:
    """The header of a new API key."""
    allowed = {f"may_{scope}": scope in scopes for scope in ("publish", "read", "erase")}
    return {"Authorization": f"Api-Key {keys.create('the lawyers', **allowed, topics=topics or [])[1]}"}  # type: ignore[arg-type]


# --- Reading one ------------------------------------------------------------------------------------------------------


def test_an_event_is_shown_as_in_the_list(client: Client, pk: int) -> None:
    [listed] = client.get("/events").json()["events"]
    answer = client.get(f"/events/{pk}")
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
    assert answer.json() == listed


@pytest.mark.parametrize("number", ["0", "99999999", str(2**63 - 1), str(2**63), "9" * 30])
def test_a_number_without_an_event_is_a_404_that_says_so(number: str, client: Client, pk: int) -> None:
    for answer in (client.get(f"/events/{number}"), client.delete(f"/events/{number}", headers=key("erase"))):
        assert answer.status_code == 404
        assert answer.json()["detail"] == f"There is no event {number}, or retention has removed it."


def test_what_has_expired_is_a_404(client: Client, pk: int) -> None:
    Event.objects.update(payload="")
    assert client.get(f"/events/{pk}").status_code == 404
    Pruned.objects.create(pk=1, expired_through=pk)
    assert client.get(f"/events/{pk}").status_code == 404


def test_a_parameter_is_a_400(client: Client, pk: int) -> None:
    assert client.get(f"/events/{pk}?topic=x").status_code == 400


@pytest.mark.parametrize(
    ("scopes", "topics", "status"),
    [
        (["read"], [], 200),
        (["read"], ["people."], 200),
        (["read"], ["People."], 404),
        (["read"], ["orders."], 404),
        (["publish"], [], 403),
        (["erase"], [], 403),
    ],
)
def test_a_key_needs_the_scope_read_and_the_topic(
    scopes: list[str], topics: list[str], status: int, client: Client, pk: int, settings: Settings
) -> None:
    settings.REQUIRE_API_KEY = True
    assert client.get(f"/events/{pk}").status_code == 401
    assert client.get(f"/events/{pk}", headers=key(*scopes, topics=topics)).status_code == status


def test_an_erased_event_says_when(client: Client, pk: int) -> None:
    erasure.erase("people.ada", "1", by="me")
    shown = client.get(f"/events/{pk}").json()
    assert shown["payload"] == {}
    assert shown["erased_at"][:19] == f"{Erasure.objects.get().erased_at:%Y-%m-%dT%H:%M:%S}"


# --- Erasing one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("required", [False, True])
def test_a_key_with_the_scope_erases(required: bool, client: Client, pk: int, settings: Settings) -> None:
    settings.REQUIRE_API_KEY = required
    header = key("erase")
    for _ in range(2):
        answer = client.delete(f"/events/{pk}", headers=header)
        assert (answer.status_code, answer.content) == (204, b"")
    assert Event.objects.get().payload == "{}"
    prefix = header["Authorization"].split()[1][:8]
    assert Erasure.objects.get().erased_by == f"API key the lawyers ({prefix})"
    assert all(finding.holds for finding in audit())


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize(
    ("scopes", "status", "word"),
    [([], 401, "Api-Key <key>"), (["publish", "read"], 403, "the scope erase; this one has publish and read")],
)
def test_nobody_else_does(
    scopes: list[str], status: int, word: str, required: bool, client: Client, pk: int, settings: Settings
) -> None:
    """Also where the service requires no keys: whoever can reach the port may not destroy data."""
    settings.REQUIRE_API_KEY = required
    answer = client.delete(f"/events/{pk}", headers=key(*scopes) if scopes else {})
    assert answer.status_code == status
    assert word in answer.json()["detail"]
    assert Event.objects.get().payload == '{"name": "Ada"}'


def test_the_line_that_would_work_has_a_key(client: Client, pk: int) -> None:
    detail = client.delete(f"/events/{pk}").json()["detail"]
    assert "-H 'Authorization: Api-Key <key>' -X DELETE" in detail


def test_a_wrong_key_erases_nothing(client: Client, pk: int) -> None:
    assert client.delete(f"/events/{pk}", headers={"Authorization": "Api-Key nonsense"}).status_code == 401
    assert not Erasure.objects.exists()


def test_a_key_erases_in_its_topics_only(client: Client, pk: int) -> None:
    assert client.delete(f"/events/{pk}", headers=key("erase", topics=["orders."])).status_code == 404
    assert not Erasure.objects.exists()
    assert client.delete(f"/events/{pk}", headers=key("erase", topics=["people."])).status_code == 204


def test_what_cannot_be_erased_is_named(client: Client, pk: int) -> None:
    body = b'[{"topic":"people.ada","event_id":"1","payload":{"name":"Ada"'
    batch = broken(body=body, status=Batch.Status.FAILED)
    answer = client.delete(f"/events/{pk}", headers=key("erase"))
    assert answer.status_code == 409
    assert answer.json()["detail"].endswith(f"all else is erased: {batch.pk}.")
    assert Event.objects.get().payload == "{}"


def test_other_methods_are_told_which_there_are(client: Client, pk: int) -> None:
    answer = client.put(f"/events/{pk}")
    assert answer.status_code == 405
    assert "GET" in answer.json()["detail"]
    assert "DELETE" in answer.json()["detail"]


# --- Erased for good --------------------------------------------------------------------------------------------------


def test_a_key_that_was_removed_and_comes_again_stays_erased(
    client: Client, publish: Publish, drain: Drain, pk: int
) -> None:
    erasure.erase("people.ada", "1", by="me")
    Event.objects.all().delete()
    publish([event("1", topic="people.ada", payload={"name": "Ada"}), event("2", payload={"kept": 1})])
    assert drain().unique == 2
    assert dict(Event.objects.values_list("event_id", "payload")) == {"1": "{}", "2": '{"kept": 1}'}
    assert "erased_at" in client.get(f"/events/{Event.objects.get(event_id='1').pk}").json()


def test_the_same_id_of_another_topic_is_kept(publish: Publish, drain: Drain, pk: int) -> None:
    erasure.erase("people.ada", "1", by="me")
    publish([event("1", topic="other", payload={"kept": 1})])
    drain()
    assert Event.objects.get(topic="other").payload == '{"kept": 1}'


def test_erasing_what_has_expired_gives_it_no_payload() -> None:
    row = Event.objects.create(
        topic="t",
        event_id="1",
        source="s",
        timestamp=timezone.now(),
        payload="",
        received_at=timezone.now(),
        batch_id=1,
    )
    assert erasure.erase("t", "1", by="me").stored
    row.refresh_from_db()
    assert row.payload == ""
