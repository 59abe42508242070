"""GET /stats: the books in one statement; and what every address does with a wrong call."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from events import stats
from events.models import Batch, Event
from tests.conftest import Publish, event

pytestmark = pytest.mark.django_db


def numbers(client: Client) -> dict[str, Any]:
    answer = client.get("/stats")
    assert answer.status_code == 200
    return answer.json()  # type: ignore[no-any-return]


def closed(status: str, received: int) -> None:
    now = timezone.now()
    Batch.objects.create(accepted_at=now, next_attempt_at=now, received=received, size=0, status=status)


def test_the_books_of_an_empty_service_are_zero(client: Client) -> None:
    books = numbers(client)
    assert books.pop("uptime") >= 0
    assert books == {
        "received": 0,
        "unique_processed": 0,
        "duplicate_dropped": 0,
        "pending": 0,
        "failed": 0,
        "discarded": 0,
        "topics": [],
        "by_topic": {},
    }


def test_an_accepted_event_is_received_and_pending(client: Client, publish: Publish) -> None:
    publish([event("1"), event("2")])
    books = numbers(client)
    assert (books["received"], books["pending"], books["unique_processed"]) == (2, 2, 0)


def test_a_processed_event_is_unique_or_a_duplicate(client: Client, publish: Publish, drain: Callable[[], Any]) -> None:
    publish([event("1", "b"), event("1", "b"), event("1", "a")])
    drain()
    publish(event("1", "a"))
    drain()
    books = numbers(client)
    assert (books["received"], books["pending"]) == (4, 0)
    assert (books["unique_processed"], books["duplicate_dropped"]) == (2, 2)
    assert books["topics"] == ["a", "b"]
    assert books["by_topic"] == {
        "a": {"unique_processed": 1, "duplicate_dropped": 1},
        "b": {"unique_processed": 1, "duplicate_dropped": 1},
    }


def test_dead_letters_are_failed_or_discarded(client: Client) -> None:
    closed("failed", 3)
    closed("failed", 1)
    closed("discarded", 5)
    books = numbers(client)
    assert (books["received"], books["pending"], books["failed"], books["discarded"]) == (9, 0, 4, 5)


def test_at_every_step_received_is_the_sum_of_the_rest(
    client: Client, publish: Publish, drain: Callable[[], Any]
) -> None:
    closed("failed", 3)
    closed("discarded", 5)
    for step in range(3):
        publish([event(str(step)), event("0"), event("x", f"topic {step}")])
        if step % 2:
            drain()
        books = numbers(client)
        parts = ("unique_processed", "duplicate_dropped", "pending", "failed", "discarded")
        assert books["received"] == 8 + 3 * (step + 1) == sum(books[part] for part in parts)


def test_the_books_are_one_statement_that_reads_no_event(client: Client, publish: Publish) -> None:
    publish(event())
    with CaptureQueriesContext(connection) as statements:
        numbers(client)
    [statement] = statements
    assert Event._meta.db_table not in statement["sql"]


def test_the_books_read_only_what_is_open(client: Client) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("a plan that only SQLite gives")
    statements: list[tuple[str, Any]] = []

    def note(execute: Any, sql: str, params: Any, *rest: Any) -> Any:
        statements.append((sql, params))
        return execute(sql, params, *rest)

    with connection.execute_wrapper(note):
        stats.books()
    [(sql, params)] = statements
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
        plan = [step[3] for step in cursor.fetchall()]
    assert any("batch_open" in step for step in plan), plan


def test_the_uptime_is_whole_seconds_since_the_start(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "_STARTED", 100.0)
    monkeypatch.setattr(stats.time, "monotonic", lambda: 142.9)
    assert numbers(client)["uptime"] == 42


def test_the_service_says_that_it_is_healthy(client: Client) -> None:
    answer = client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "healthy"})


def test_the_service_is_healthy_without_its_database(client: Client, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert client.get("/health").status_code == 200


def test_books_that_cannot_be_read_are_a_503(client: Client) -> None:
    def refuse(*_: Any) -> Any:
        raise OperationalError("disk I/O error")

    with connection.execute_wrapper(refuse):
        answer = client.get("/stats")
    assert answer.status_code == 503
    assert int(answer["Retry-After"]) > 0


# --- Wrong calls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nothing", "/stats/", "/publish/", "/robots.txt"])
def test_an_address_that_is_none_is_a_404_in_json(path: str, client: Client) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert path in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/publish", "POST"),
        ("PUT", "/publish", "POST"),
        ("POST", "/events", "GET"),
        ("DELETE", "/events", "GET"),
        ("POST", "/stats", "GET"),
        ("POST", "/health", "GET"),
        ("PATCH", "/batches/1", "GET"),
    ],
)
def test_a_wrong_method_is_a_405_that_names_the_right_one(method: str, path: str, allowed: str, client: Client) -> None:
    answer = client.generic(method, path)
    assert answer.status_code == 405
    assert allowed in answer["Allow"]
    assert method in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/stats", "/health", "/events"])
def test_a_head_is_a_get_without_a_body(path: str, client: Client) -> None:
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["/stats", "/health"])
@pytest.mark.parametrize("accept", ["application/json", "text/html,*/*;q=0.8", "image/png"])
def test_an_address_that_has_only_json_answers_in_json(path: str, accept: str, client: Client) -> None:
    answer = client.get(path, headers={"Accept": accept})
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
