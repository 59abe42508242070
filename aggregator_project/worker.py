"""What keeps a worker hearing: it reconnects soon, gives up a connection that hangs, and never runs without beat.

Each of these once cost minutes in `make faults`, or the worker for good, while everything looked alive.
"""

import logging
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import celery
from celery import bootsteps
from celery.worker import consumer, request, state

log = logging.getLogger(__name__)

#: Seconds between two tries to reach the broker. Celery's own pauses grow to 30, which come on top of any outage.
RECONNECT_SECONDS = 1

#: Seconds between two looks at beat: what it costs is one waitpid(2).
LOOK_SECONDS = 1


class Consumer(consumer.Consumer):
    """Tries to reach its broker again and again at the same short pauses."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Not kombu's get_event_loop(): that has forgotten it after the first time the worker connects anew.
        Request.hub = self.hub

    class Blueprint(consumer.Consumer.Blueprint):
        # No task here is sent for later. For such tasks it would make 28 queues in RabbitMQ.
        default_steps = [
            step for step in consumer.Consumer.Blueprint.default_steps if not step.endswith(":DelayedDelivery")
        ]

    def ensure_connected(self, conn: Any) -> Any:
        # Celery has a setting for how often, none for how long in between.
        conn.ensure_connection = partial(
            conn.ensure_connection,
            interval_start=RECONNECT_SECONDS,
            interval_step=0,
            interval_max=RECONNECT_SECONDS,
        )
        return super().ensure_connected(conn)


class Request(request.Request):
    """A task that was received. If its message cannot be acknowledged, the worker connects anew.

    Celery only logs it, or not even that. But a message that is not acknowledged takes the place of the next one for as
    long as the connection lives (worker_prefetch_multiplier), and a broker that hangs for a while, or refuses a write,
    does not end a connection: with one process and one place, the worker would never fetch a task again.
    """

    #: The loop of this worker.
    hub: Any = None
    acknowledged: bool

    def acknowledge(self) -> None:
        self._answer(self.message.ack)

    def reject(self, requeue: bool = False) -> None:
        self._answer(partial(self.message.reject, requeue=requeue))

    def _answer(self, answer: Callable[[], None]) -> None:
        if self.acknowledged:
            return
        self.acknowledged = True
        try:
            answer()
        except Exception as error:
            # A connection that broke, or one that lives and a Redis that refuses writes: no replica to copy them to, no
            # memory, a disk that it cannot save to, a replica since a failover.
            log.warning("a task could not be acknowledged (%s); connecting anew", error)
            # From the loop, whose errors reach the consumer. Those of a task's callbacks end in the log.
            self.hub.call_soon(_fail, error)


def _fail(error: Exception) -> NoReturn:
    raise ConnectionError(f"a task could not be acknowledged: {error}") from error


class Task(celery.Task):
    """The class of every task."""

    Request = "aggregator_project.worker:Request"


class BeatWatch(bootsteps.StartStopStep):
    """Ends the worker, after the task it is at, when its beat has died; whoever runs it starts both again.

    Celery starts an embedded beat once and never looks at it again.
    """

    requires = ("celery.worker.components:Timer", "celery.worker.components:Beat")

    def start(self, worker: Any) -> None:
        worker.timer.call_repeatedly(LOOK_SECONDS, self._look, (worker,))

    def _look(self, worker: Any) -> None:
        # A worker that stops has ended its beat itself.
        stopping = state.should_stop is not None or state.should_terminate is not None
        if worker.beat is not None and not worker.beat.is_alive() and not stopping:
            log.error("beat has died; the worker ends, to be started again with a new one")
            os.kill(os.getpid(), signal.SIGTERM)
