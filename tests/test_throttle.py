"""Throttling: as many requests as THROTTLE_RATE allows, counted in the shared cache, and never a reason to fail."""

import json
import logging
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client
from pytest_django import Settings

from events import keys
from events.api import doors
from events.api.doors import RateThrottle
from tests.conftest import event

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _throttled(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.THROTTLE_RATE = "3/hour"
    monkeypatch.setattr(RateThrottle, "silent_until", 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The time that windows go by; it stands still, at a quarter past."""

    class Clock:
        now = 1_800_000_000 // 3600 * 3600 + 900.0

        def time(self) -> float:
            return self.now

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(doors, "time", clock)
    return clock


def ask(address: str = "192.0.2.1", path: str = "/stats", **headers: str) -> Any:
    return Client().get(path, REMOTE_ADDR=address, headers=headers)


def test_what_is_beyond_the_rate_is_a_429_that_says_when_to_come_back(clock: Any) -> None:
    assert [ask().status_code for _ in range(3)] == [200, 200, 200]
    answer = ask()
    assert answer.status_code == 429
    assert answer["Retry-After"] == "2700"
    assert "2700 seconds" in answer.json()["detail"]


def test_the_next_window_begins_anew(clock: Any) -> None:
    for _ in range(4):
        ask()
    clock.now += 2700
    assert ask().status_code == 200


def test_each_address_is_counted_apart_and_an_ipv6_network_together(clock: Any) -> None:
    addresses = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4"]
    assert [ask(address).status_code for address in addresses] == [200] * 5 + [429]


def test_a_key_is_counted_wherever_it_comes_from(clock: Any, settings: Settings) -> None:
    settings.REQUIRE_API_KEY = True
    one, other = (keys.create(name, may_publish=True, may_read=True)[1] for name in "ab")
    asked = [ask(f"192.0.2.{number}", Authorization=f"Api-Key {one}").status_code for number in range(4)]
    assert asked == [200, 200, 200, 429]
    assert ask(Authorization=f"Api-Key {other}").status_code == 200


def test_all_calls_are_counted_together_and_health_is_not(clock: Any) -> None:
    body = json.dumps(event())
    published = Client().post("/publish", body, content_type="application/json", REMOTE_ADDR="192.0.2.1")
    assert published.status_code == 202
    assert [ask(path=path).status_code for path in ("/events", published["Location"], "/stats")] == [200, 200, 429]
    assert [ask(path="/health").status_code for _ in range(5)] == [200] * 5


def test_a_publish_that_is_refused_is_not_accepted(clock: Any, publish: Any) -> None:
    for _ in range(3):
        ask("127.0.0.1")
    assert publish(event()).status_code == 429
    assert ask("192.0.2.9").json()["received"] == 0


def test_it_is_off_unless_it_is_set(settings: Settings) -> None:
    settings.THROTTLE_RATE = ""
    assert [ask().status_code for _ in range(5)] == [200] * 5


class Away:
    """A cache that does not answer."""

    def __init__(self) -> None:
        self.asked = 0

    def add(self, *_: Any, **__: Any) -> bool:
        self.asked += 1
        raise ConnectionError("refused")


def test_without_the_cache_nobody_is_refused_and_it_is_said_once(
    clock: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = Away()
    monkeypatch.setattr(doors, "cache", away)
    with caplog.at_level(logging.WARNING, "events.api.doors"):
        assert [ask().status_code for _ in range(5)] == [200] * 5
        clock.now += doors.THROTTLE_PAUSE_SECONDS + 1
        assert [ask().status_code for _ in range(5)] == [200] * 5
        assert away.asked == 2
        monkeypatch.setattr(doors, "cache", cache)
        clock.now += doors.THROTTLE_PAUSE_SECONDS + 1
        ask()
    said = [record.getMessage() for record in caplog.records if record.name == "events.api.doors"]
    assert [line.split(":")[0] for line in said] == [
        "throttling is off",
        "throttling is on again",
    ]


def test_a_cache_that_is_flushed_in_between_refuses_nobody(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flushed:
        def add(self, *_: Any, **__: Any) -> bool:
            return True

        def incr(self, name: str) -> int:
            raise ValueError(f"Key {name!r} not found")

    monkeypatch.setattr(doors, "cache", Flushed())
    assert [ask().status_code for _ in range(5)] == [200] * 5
