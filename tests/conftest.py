"""What every test may use."""

import json
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client

from events import inbox, store
from events.api import events as listing

Publish = Callable[..., Any]


def pytest_configure() -> None:
    """A shell starts what it runs in the background with Ctrl-C ignored, and every process of a test would inherit it.

    They would not end when a test sends them the signal.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _silent_doorbell() -> None:
    """Each test starts with a doorbell that nobody has rung, an inbox unknown to this process, and no open stream."""
    cache.clear()
    inbox._doorbell.silent_until = 0.0
    inbox._pending.asked_at = float("-inf")
    # What a test began to stream and left unread gives its place back late.
    listing._streams = threading.BoundedSemaphore(2)


@pytest.fixture
def publish(client: Client) -> Publish:
    """Posts a body (anything JSON can hold, or bytes as they are) to /publish and returns the answer."""

    def post(body: Any, content_type: str = "application/json", **headers: str) -> Any:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return client.generic("POST", "/publish", raw, content_type=content_type, headers=headers)

    return post


@pytest.fixture
def drain() -> Callable[[], store.Stored]:
    """Stores all that is pending, as the worker would, without its pauses."""

    def until_empty() -> store.Stored:
        total = store.Stored()
        while (chunk := store.store_chunk()[0]).batches:
            total += chunk
        return total

    return until_empty


def event(event_id: str = "1", topic: str = "t", **fields: Any) -> dict[str, Any]:
    """An event as a publisher would send it."""
    return {"topic": topic, "event_id": event_id, "source": "test", "payload": {"n": 1}, **fields}
