"""A worker that cannot acknowledge a task connects anew, and its beat goes on whatever the clock does."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from celery.worker import request

from aggregator_project.schedules import Every
from aggregator_project.worker import Request


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Mock:
    hub = Mock()
    monkeypatch.setattr(Request, "hub", hub)
    return hub


def received(answer: Any) -> Request:
    """A task whose message is answered so."""
    task = Request.__new__(Request)
    task.acknowledged = False
    task._message = SimpleNamespace(ack=answer, reject=answer)
    task._connection_errors = (OSError,)
    return task


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("away"),
        redis.ResponseError("NOREPLICAS Not enough good replicas to write."),
        redis.ReadOnlyError("READONLY You can't write against a read only replica."),
        redis.OutOfMemoryError("OOM command not allowed when used memory > 'maxmemory'."),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("how", ["acknowledge", "reject"])
def test_whatever_refuses_the_acknowledgement_the_worker_connects_anew(how: str, error: Exception, hub: Mock) -> None:
    getattr(received(Mock(side_effect=error)), how)()
    [(fail, *arguments)] = [call.args for call in hub.call_soon.call_args_list]
    # What the consumer takes for a lost connection, whichever broker it is.
    with pytest.raises(ConnectionError, match="could not be acknowledged"):
        fail(*arguments)


def test_an_acknowledged_task_is_not_acknowledged_again(hub: Mock) -> None:
    answer = Mock()
    task = received(answer)
    task.acknowledge()
    task.acknowledge()
    assert answer.call_count == 1
    assert not hub.call_soon.called
    assert issubclass(Request, request.Request)


@pytest.mark.parametrize(("seconds_ago", "due"), [(1, False), (3, True), (-3600, True)])
def test_beat_sweeps_on_when_the_clock_is_set_back(seconds_ago: int, due: bool) -> None:
    now = datetime(2025, 10, 21, 12, tzinfo=UTC)
    state = Every(2, nowfun=lambda: now).is_due(now - timedelta(seconds=seconds_ago))
    assert state.is_due is due
    assert state.next <= 2
