"""GET /health/ready: ready, or what is in the way; asked as often as one likes."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connection, connections
from django.test import Client
from django.utils import timezone

from events import dead_letters, health, state
from events.models import Heartbeat
from tests.test_store import pending

# The checks run in threads, which see what is committed.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    health._Known.report, health._Known.at = None, float("-inf")
    yield
    health._Known.report, health._Known.at = None, float("-inf")


@pytest.fixture
def parts() -> None:
    """A worker and beat that are there."""
    seen("worker")
    seen("beat")


def seen(part: str, seconds_ago: float = 0) -> None:
    at = timezone.now() - timedelta(seconds=seconds_ago)
    Heartbeat.objects.update_or_create(part=part, name=part, defaults={"seen_at": at})


def processed(seconds_ago: float = 0) -> None:
    """A batch that was stored so long ago."""
    pending(status="processed", body=None, processed_at=timezone.now() - timedelta(seconds=seconds_ago))


def ask(client: Client) -> tuple[int, dict[str, Any]]:
    health._Known.at = float("-inf")
    answer = client.get("/health/ready")
    return answer.status_code, answer.json()


def away(*_: Any, **__: Any) -> Any:
    raise OSError("away")


@pytest.mark.usefixtures("parts")
def test_a_service_that_is_whole_is_ready(client: Client) -> None:
    status, answer = ask(client)
    assert (status, answer["status"], answer["down"]) == (200, "ready", [])
    assert {name: part["state"] for name, part in answer["parts"].items()} == dict.fromkeys(health.CHECKS, "ok")


@pytest.mark.parametrize("part", ["database", "broker", "worker"])
@pytest.mark.usefixtures("parts")
def test_what_is_down_is_named(part: str, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    if part == "database":
        monkeypatch.setattr(health.checks.Database, "run", away)
    if part == "broker":
        monkeypatch.setattr(state.current_app, "connection_for_write", away)
    if part == "worker":
        seen("worker", state.GONE_SECONDS + 1)
    status, answer = ask(client)
    assert (status, answer["status"], answer["down"]) == (503, "unavailable", [part])
    assert answer["parts"][part]["detail"]


@pytest.mark.skipif(connection.vendor != "postgresql", reason="of PostgreSQL")
@pytest.mark.usefixtures("parts")
def test_a_postgresql_that_is_read_only_is_not_ready(client: Client) -> None:
    """As a standby is, and a server that was set so."""
    options = connections.settings["default"]["OPTIONS"]
    usual = options["options"]
    options["options"] = f"{usual} -c default_transaction_read_only=on"
    try:
        status, answer = ask(client)
    finally:
        options["options"] = usual
    assert (status, answer["down"]) == (503, ["database"])
    assert "read-only" in answer["parts"]["database"]["detail"]


@pytest.mark.skipif(connection.vendor != "sqlite", reason="of SQLite")
@pytest.mark.parametrize("which", ["file", "folder"])
@pytest.mark.usefixtures("parts")
def test_a_sqlite_file_that_is_read_only_is_not_ready(
    which: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(connection.settings_dict["NAME"])
    closed = file if which == "file" else file.parent
    # Root may write whatever the mode says.
    monkeypatch.setattr(state.os, "access", lambda path, mode: Path(path) != closed)
    status, answer = ask(client)
    assert (status, answer["down"]) == (503, ["database"])
    assert answer["parts"]["database"]["detail"] == f"{closed} is read-only"


@pytest.mark.usefixtures("parts")
def test_a_cache_that_forgets_is_named(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(cache._connections["default"]), "set", lambda *_, **__: None)
    assert ask(client)[1]["down"] == ["cache"]


@pytest.mark.usefixtures("parts")
def test_a_worker_that_drains_is_there(client: Client) -> None:
    """It says so every few seconds from its main process; a drain of five may make it late."""
    seen("worker", 11)
    assert ask(client)[0] == 200


@pytest.mark.usefixtures("parts")
def test_without_beat_it_is_ready_and_says_so(client: Client) -> None:
    seen("beat", state.GONE_SECONDS + 1)
    status, answer = ask(client)
    assert (status, answer["down"], answer["parts"]["beat"]["state"]) == (200, [], "warning")


@pytest.mark.usefixtures("parts")
def test_a_batch_that_waits_too_long_is_in_the_way(client: Client, settings: Any) -> None:
    pending(at=timezone.now() - timedelta(seconds=61))
    processed()
    status, answer = ask(client)
    assert (status, answer["down"]) == (503, ["pending"])
    settings.READY_MAX_PENDING_SECONDS = 90
    assert ask(client)[0] == 200
    settings.READY_MAX_PENDING_SECONDS = 0
    assert ask(client)[0] == 200


LONG = state.STALLED_SECONDS + 1


@pytest.mark.parametrize("last_stored", [None, LONG, -3600])
@pytest.mark.usefixtures("parts")
def test_a_worker_that_is_there_and_stores_nothing_of_what_is_due_is_down(
    last_stored: float | None, client: Client
) -> None:
    pending(at=timezone.now() - timedelta(seconds=LONG))
    if last_stored is not None:
        processed(last_stored)
    status, answer = ask(client)
    assert (status, answer["down"]) == (503, ["worker"])
    assert "nothing was stored for 31 s although something is due" in answer["parts"]["worker"]["detail"]


@pytest.mark.usefixtures("parts")
def test_a_worker_that_has_nothing_to_store_is_there(client: Client) -> None:
    processed(LONG)
    pending(at=timezone.now() - timedelta(seconds=1))
    pending(attempts=1, at=timezone.now() - timedelta(hours=1), next_attempt_at=timezone.now() + timedelta(minutes=4))
    assert ask(client)[0] == 200


@pytest.mark.usefixtures("parts")
def test_a_dead_letter_that_is_replayed_has_not_waited_yet(client: Client) -> None:
    dead = pending(at=timezone.now() - timedelta(hours=1), status="failed", attempts=5)
    dead_letters.replay([dead.pk])
    assert ask(client)[0] == 200


@pytest.mark.usefixtures("parts")
def test_a_heartbeat_from_the_future_says_nothing_about_now(client: Client) -> None:
    seen("worker", -3600)
    assert ask(client)[1]["down"] == ["worker"]


@pytest.mark.usefixtures("parts")
def test_a_part_that_hangs_holds_the_answer_up_no_longer_than_its_time(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[bool] = []

    def hang() -> state.Part:
        while not released:
            time.sleep(0.01)
        return state.Part("broker", True, "")

    monkeypatch.setattr(state, "broker", hang)
    monkeypatch.setattr(health.StateCheck, "timeout", timedelta(seconds=-0.9))
    try:
        assert "broker" in ask(client)[1]["down"]
    finally:
        released.append(True)


@pytest.mark.usefixtures("parts")
def test_asking_often_asks_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counting(monkeypatch)
    for _ in range(5):
        assert client.get("/health/ready").status_code == 200
    assert len(asked) == 1


@pytest.mark.usefixtures("parts")
def test_whoever_asks_while_somebody_does_gets_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    before = health.report()
    health._Known.at = float("-inf")
    with health._asking, ThreadPoolExecutor(1) as threads:
        assert threads.submit(health.report).result(timeout=5) is before


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    asked: list[int] = []
    whole: Callable[[], health.Report] = health._ask

    def ask_and_count() -> health.Report:
        asked.append(1)
        return whole()

    monkeypatch.setattr(health, "_ask", ask_and_count)
    return asked


@pytest.mark.usefixtures("parts")
def test_people_get_a_page(client: Client) -> None:
    seen("worker", state.GONE_SECONDS + 1)
    answer = client.get("/health/ready", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert answer.status_code == 503
    assert answer.headers["Content-Type"].startswith("text/html")
    page = answer.content.decode()
    assert "Not ready: worker" in page
    assert "<script" not in page
    assert "style=" not in page


@pytest.mark.usefixtures("parts")
def test_where_keys_are_required_strangers_learn_no_details(client: Client, settings: Any) -> None:
    settings.REQUIRE_API_KEY = True
    status, answer = ask(client)
    assert status == 200
    assert answer["parts"]["database"] == {"state": "ok"}


@pytest.mark.usefixtures("parts")
def test_the_log_has_a_line_when_it_changes_and_not_when_it_is_asked(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "events.health")
    ask(client)
    seen("worker", state.GONE_SECONDS + 1)
    ask(client)
    ask(client)
    seen("worker")
    ask(client)
    lines = [record.getMessage() for record in caplog.records if record.name == "events.health"]
    assert len(lines) == 2
    assert lines[0].startswith("not ready: worker (last seen ")
    assert lines[1] == "ready again"
