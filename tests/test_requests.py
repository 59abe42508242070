"""A request's id goes with what it causes: into the answer, the log, the inbox, the task and the lines of the drain."""

import io
import json
import logging
import logging.config
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.app.task import Context
from django.test import Client

from aggregator_project import requests
from aggregator_project.celery import app, forget_request_id, receive_request_id, send_request_id
from aggregator_project.logs import logging_config
from events import inbox, origin, store, tasks
from events.models import Batch
from tests.conftest import Publish, event
from tests.test_store import broken

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]


def lines(caplog: pytest.LogCaptureFixture, logger: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == logger]


@pytest.mark.parametrize("given", ["abc-1", "0af7651916cd43dd8448eb211c80319c", "a" * 64, "A.b_c:d=e+f/g"])
def test_the_callers_id_is_given_back_and_kept_with_the_batch(given: str, publish: Publish) -> None:
    assert publish(event(), **{"X-Request-ID": given}).headers["X-Request-ID"] == given
    assert Batch.objects.get().request_id == given


@pytest.mark.parametrize("given", ["", "a" * 65, "two words", "new\nline", "\x1b[31m", "é", "a;b"])
def test_an_id_that_cannot_be_used_is_replaced(given: str, publish: Publish) -> None:
    made = publish(event(), **{"X-Request-ID": given}).headers["X-Request-ID"]
    assert len(made) == 16
    assert made != given
    assert Batch.objects.get().request_id == made


def test_each_request_has_an_id_of_its_own_and_none_outlives_it(client: Client) -> None:
    made = {client.get("/health").headers["X-Request-ID"] for _ in range(3)}
    assert len(made) == 3
    assert origin.request_id.get() == ""


def test_a_batch_with_an_idempotency_key_has_it_too(publish: Publish) -> None:
    publish(event(), **{"X-Request-ID": "abc", "Idempotency-Key": "k"})
    assert Batch.objects.get().request_id == "abc"


def test_answers_of_the_admin_and_of_nobody_have_one(client: Client) -> None:
    for address in ("/admin/login/", "/nothing-there", "/static/events/page.css"):
        assert client.get(address).headers["X-Request-ID"]


# --- Into the task ----------------------------------------------------------------------------------------------------


def test_the_task_carries_the_id_of_the_request_that_rang(publish: Publish) -> None:
    with app.connection_for_write() as link:
        queue = link.SimpleQueue("celery")
        queue.clear()
        publish(event(), **{"X-Request-ID": "abc"})
        message = queue.get(timeout=5)
        message.ack()
        queue.close()
    assert message.headers["task"] == inbox.PROCESS_INBOX
    assert message.headers["request_id"] == "abc"


def test_the_lines_of_a_task_have_the_id_that_it_came_with() -> None:
    headers: dict[str, Any] = {}
    token = origin.request_id.set("abc")
    send_request_id(headers=headers)
    origin.request_id.reset(token)
    # Celery makes a task's request of the headers of its message.
    receive_request_id(task=SimpleNamespace(request=Context(headers)))
    assert origin.request_id.get() == "abc"
    forget_request_id()
    assert origin.request_id.get() == ""


# --- Lines ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """What the service writes as JSON, line by line."""
    stream = io.StringIO()
    config = logging_config(form="json", level="DEBUG", part="web")
    handler = logging.StreamHandler(stream)
    formatter = config["formatters"]["line"]
    handler.setFormatter(formatter["()"](**{name: value for name, value in formatter.items() if name != "()"}))
    for name in ("events.store", "events.tasks", "requests"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", [handler])
        monkeypatch.setattr(logger, "propagate", False)
        monkeypatch.setattr(logger, "level", logging.DEBUG)
        logger._cache.clear()  # type: ignore[attr-defined]
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_written_during_a_request_has_its_id(written: Any, publish: Publish) -> None:
    publish({"topic": "secret-topic"}, **{"X-Request-ID": "abc"})
    [line] = written()
    assert line["event"] == "publish refused"
    assert line["request_id"] == "abc"
    assert (line["view"], line["status"], line["reason"], line["part"]) == ("publish", 400, "invalid", "web")
    assert "secret-topic" not in json.dumps(line)


def test_a_drain_writes_one_line_and_names_its_requests_when_asked_to(written: Any, publish: Publish) -> None:
    for number in range(store.REQUESTS_NAMED + 5):
        publish(event(str(number), payload={"password": "hunter2"}), **{"X-Request-ID": f"r{number}"})
    tasks.process_inbox()
    tasks.process_inbox()
    chunk, drained = written()
    assert (drained["event"], drained["level"], drained["batches"], drained["events"]) == ("stored", "info", 25, 25)
    assert chunk["level"] == "debug"
    assert len(chunk["request_ids"]) == store.REQUESTS_NAMED
    assert set(chunk["request_ids"]) <= {f"r{number}" for number in range(25)}
    assert "hunter2" not in json.dumps([chunk, drained])


def test_a_dead_letter_names_the_request_it_came_with(written: Any, drain: Drain, settings: Any) -> None:
    settings.INBOX_MAX_ATTEMPTS = 1
    broken(request_id="abc")
    drain()
    [line] = [line for line in written() if "dead letter" in line["event"]]
    assert line["request_id"] == "abc"


def test_a_request_that_went_well_writes_nothing(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    client.get("/stats")
    client.get("/batches/17")
    assert lines(caplog, "requests") == []


def test_all_requests_write_a_line_if_asked_to(client: Client, settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.LOG_REQUESTS = True
    caplog.set_level("INFO", "requests")
    client.get("/events?topic=secret")
    [line] = lines(caplog, "requests")
    assert (line.view, line.method, line.status) == ("events", "GET", 200)  # type: ignore[attr-defined]
    assert "secret" not in str(vars(line))


def test_slow_and_failed_requests_write_a_line(
    client: Client, publish: Publish, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "requests")
    monkeypatch.setattr(requests, "SLOW_SECONDS", 0)
    client.get("/stats")
    # It was asked to wait.
    publish(event(), Prefer="wait=1")

    def full(*_: Any, **__: Any) -> None:
        raise inbox.InboxFull

    monkeypatch.setattr(inbox, "accept", full)
    publish(event())
    assert [record.getMessage() for record in lines(caplog, "requests")] == ["slow request", "request failed"]


def test_a_publisher_gone_wrong_does_not_fill_the_log(publish: Publish, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "requests")
    for _ in range(5):
        publish({})
    assert len(lines(caplog, "requests")) == 1
