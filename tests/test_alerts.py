"""alerts.py: an operator is told once when something needs one, and once when it is well again."""

import json
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from pytest_django import Settings

from events import alerts, health
from events.models import Alert, Batch
from tests.conftest import event
from tests.test_store import pending

pytestmark = pytest.mark.django_db

LATER = timedelta(seconds=alerts.DOWN_SECONDS + 1)


class Webhook(HTTPServer):
    """Takes messages, and answers with `status`."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.status = 200
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if webhook.status == 200:
                    webhook.messages.append(body)
                self.send_response(webhook.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/secret"

    def said(self) -> list[tuple[str, str]]:
        """The cause and status of every message since the last call."""
        messages = [(message["cause"], message["status"]) for message in self.messages]
        self.messages.clear()
        return messages


@pytest.fixture
def webhook(settings: Settings) -> Iterator[Webhook]:
    server = Webhook()
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    settings.NOTIFY_URL = server.url
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def components(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The state of each component, for a test to change."""
    words = dict.fromkeys(health.CHECKS, "ok")
    monkeypatch.setattr(
        health, "report", lambda: health.Report([health.Part(name, word, "why", 0.0) for name, word in words.items()])
    )
    return words


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = timezone.now()

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(alerts.timezone, "now", clock)
    return clock


def look() -> None:
    alerts.tell(alerts.look())


@pytest.mark.parametrize(("component", "word"), [("worker", "down"), ("broker", "down"), ("beat", "warning")])
def test_a_component_that_stays_away_is_told_once_and_so_is_its_return(
    component: str, word: str, webhook: Webhook, components: dict[str, str], clock: Clock
) -> None:
    components[component] = word
    look()
    assert webhook.said() == []
    clock.now += LATER
    look()
    look()
    assert webhook.said() == [(component, "firing")]
    components[component] = "ok"
    look()
    assert webhook.said() == []
    clock.now += LATER
    look()
    look()
    assert webhook.said() == [(component, "resolved")]


def test_a_restart_is_nobodys_business(webhook: Webhook, components: dict[str, str], clock: Clock) -> None:
    for _ in range(3):
        components["worker"] = "down"
        look()
        clock.now += timedelta(seconds=alerts.DOWN_SECONDS - 1)
        look()
        components["worker"] = "ok"
        look()
        clock.now += LATER
        look()
    assert webhook.said() == []


@pytest.mark.usefixtures("components")
def test_a_dead_letter_is_told_at_once_however_many_follow(webhook: Webhook) -> None:
    look()
    assert webhook.said() == []
    batch = pending(event()).pk
    Batch.objects.filter(pk=batch).update(status=Batch.Status.FAILED, error="ValueError: no")
    look()
    [message] = webhook.messages
    assert set(message) == {"text", "cause", "status", "since"}
    assert f"there are dead letters, since {message['since'][:10]}" in message["text"]
    assert f"Batch {batch}: ValueError: no." in message["text"]
    webhook.said()
    other = pending(event("2")).pk
    Batch.objects.filter(pk=other).update(status=Batch.Status.FAILED)
    look()
    assert webhook.said() == []
    Batch.objects.update(status=Batch.Status.DISCARDED)
    look()
    assert "well again (there are dead letters, from " in webhook.messages[0]["text"]
    assert webhook.said() == [("dead_letter", "resolved")]


@pytest.mark.usefixtures("components")
def test_the_inbox_is_told_at_four_fifths_and_well_again_at_a_half(webhook: Webhook, settings: Settings) -> None:
    batch = pending(event()).pk
    settings.INBOX_MAX_EVENTS = 100
    told = []
    for events in (79, 80, 100, 51, 50, 79):
        Batch.objects.filter(pk=batch).update(received=events)
        look()
        told.append(webhook.said())
    assert told == [[], [("inbox", "firing")], [], [], [("inbox", "resolved")], []]


@pytest.mark.usefixtures("components")
def test_without_a_limit_the_inbox_is_never_full(webhook: Webhook, settings: Settings) -> None:
    pending(event())
    settings.INBOX_MAX_EVENTS = 0
    look()
    assert webhook.said() == []


@pytest.mark.usefixtures("components")
def test_a_disk_that_is_nearly_full_is_told(webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for free in (50, 5, 4, 6, 7, 8):
        monkeypatch.setattr(alerts.shutil, "disk_usage", lambda _, free=free: Usage(100 * 10**9, free * 10**9))
        look()
        told.append(webhook.said())
    assert told == [[], [("disk", "firing")], [], [], [("disk", "resolved")], []]


class Usage(NamedTuple):
    total: int
    free: int


@pytest.mark.usefixtures("components")
def test_what_was_not_taken_is_sent_again(
    webhook: Webhook, components: dict[str, str], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    components["worker"] = "down"
    look()
    clock.now += LATER
    webhook.status = 500
    look()
    assert "127.0.0.1 answered 500" in caplog.text
    assert "secret" not in caplog.text
    webhook.status = 200
    look()
    look()
    assert webhook.said() == [("worker", "firing")]


def test_a_process_that_died_while_it_sent_is_made_up_for(
    webhook: Webhook, components: dict[str, str], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    components["worker"] = "down"
    look()
    clock.now += LATER
    with monkeypatch.context() as dying:
        dying.setattr(alerts, "send", dies)
        with pytest.raises(SystemExit):
            look()
    look()
    assert webhook.said() == []
    clock.now += timedelta(seconds=alerts.SENDING_SECONDS + 1)
    look()
    assert webhook.said() == [("worker", "firing")]


def dies(*_: Any, **__: Any) -> None:
    raise SystemExit


def test_a_redirect_is_no_success(webhook: Webhook) -> None:
    webhook.status = 302
    with pytest.raises(alerts.NotSent, match="answered 302"):
        alerts.send("text")


def test_a_webhook_that_is_away_keeps_its_address_secret(settings: Settings) -> None:
    settings.NOTIFY_URL = "http://127.0.0.1:1/services/secret"
    with pytest.raises(alerts.NotSent) as raised:
        alerts.send("text")
    assert str(raised.value) == "127.0.0.1 could not be reached (ConnectError)"


def test_the_database_is_told_from_memory(webhook: Webhook, components: dict[str, str], clock: Clock) -> None:
    watch = alerts.DatabaseWatch()
    watch.look()
    components["database"] = "down"
    watch.look()
    clock.now += LATER
    watch.look()
    watch.look()
    assert webhook.said() == [("database", "firing")]
    components["database"] = "ok"
    watch.look()
    clock.now += LATER
    watch.look()
    watch.look()
    assert webhook.said() == [("database", "resolved")]
    assert not Alert.objects.exists()


def test_one_process_of_a_host_looks(tmp_path: Path) -> None:
    first, second = alerts._Lock(tmp_path / "lock"), alerts._Lock(tmp_path / "lock")
    assert first.is_mine()
    assert not second.is_mine()
    assert first.is_mine()


def test_the_command_sends_a_test_message(webhook: Webhook) -> None:
    call_command("notify")
    assert webhook.said() == [("test", "test")]


def test_the_command_says_why_nothing_was_sent(webhook: Webhook, settings: Settings) -> None:
    webhook.status = 404
    with pytest.raises(CommandError, match=r"127\.0\.0\.1 answered 404"):
        call_command("notify")
    settings.NOTIFY_URL = ""
    with pytest.raises(CommandError, match="NOTIFY_URL is not set"):
        call_command("notify")
