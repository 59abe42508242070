"""GET /batches/{id}: what became of one publish."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from events.models import Batch
from tests.conftest import Publish, event

pytestmark = pytest.mark.django_db


def test_a_pending_batch_has_no_result_yet(client: Client, publish: Publish) -> None:
    answer = client.get(publish([event("1"), event("1")])["Location"])
    batch = Batch.objects.get()
    assert answer.status_code == 200
    assert answer.json() == {
        "batch_id": batch.pk,
        "status": "pending",
        "received": 2,
        "unique": None,
        "duplicates": None,
        "accepted_at": msgspec.to_builtins(batch.accepted_at),
        "processed_at": None,
        "attempts": 0,
        "error": None,
    }


def test_a_processed_batch_says_what_was_new(client: Client, publish: Publish, drain: Callable[[], Any]) -> None:
    where = publish([event("1"), event("2"), event("1")])["Location"]
    drain()
    receipt = client.get(where).json()
    assert (receipt["status"], receipt["unique"], receipt["duplicates"]) == ("processed", 2, 1)
    assert receipt["processed_at"] == msgspec.to_builtins(Batch.objects.get().processed_at)


def test_a_dead_letter_says_why(client: Client) -> None:
    now = timezone.now()
    batch = Batch.objects.create(
        accepted_at=now, next_attempt_at=now, received=1, size=1, body=b"?", status="failed", attempts=5, error="why"
    )
    receipt = client.get(f"/batches/{batch.pk}").json()
    assert (receipt["status"], receipt["attempts"], receipt["error"]) == ("failed", 5, "why")
    assert (receipt["unique"], receipt["duplicates"]) == (None, None)


def test_a_receipt_does_not_read_the_body(client: Client, publish: Publish) -> None:
    where = publish(event())["Location"]
    with CaptureQueriesContext(connection) as statements:
        client.get(where)
    [statement] = statements
    assert '"body"' not in statement["sql"]


@pytest.mark.parametrize("number", [0, 999_999, 2**63 - 1, 2**63, 10**40])
def test_a_batch_that_never_was_is_a_404(number: int, client: Client) -> None:
    answer = client.get(f"/batches/{number}")
    assert answer.status_code == 404
    assert str(number) in answer.json()["detail"]


@pytest.mark.parametrize("name", ["x", "-1", "1.0", "", "1/"])
def test_what_is_no_number_is_no_address(name: str, client: Client) -> None:
    answer = client.get(f"/batches/{name}")
    assert answer.status_code == 404
    assert answer.json()["detail"]
