"""The Celery app: workers and beat read their settings from Django's, under CELERY_."""

import gc
import logging.config
import os
import warnings
from typing import Any

from celery import Celery
from celery.signals import (
    beat_embedded_init,
    beat_init,
    before_task_publish,
    celeryd_init,
    heartbeat_sent,
    setup_logging,
    task_postrun,
    task_prerun,
    worker_init,
    worker_process_init,
    worker_ready,
)

from aggregator_project.tether import end_with
from aggregator_project.worker import BeatWatch
from events.origin import request_id

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aggregator_project.settings")

#: Seconds between two signs of life that a worker and RabbitMQ give each other.
HEARTBEAT_SECONDS = 10

# refuse_wrong_settings() below has its own.
os.environ.setdefault("CELERY_SKIP_CHECKS", "true")

# It is about pickled messages, which no part here accepts.
warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")

# Flower only listens to the broker: without Django's models and our tasks it needs half the memory.
_flower = os.environ.get("PART") == "flower"

app = Celery("aggregator", task_cls="aggregator_project.worker:Task", fixups=[] if _flower else None)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.worker_consumer = "aggregator_project.worker:Consumer"
app.steps["worker"].add(BeatWatch)
if not _flower:
    app.autodiscover_tasks()


@setup_logging.connect
def use_the_services_log_lines(**_: Any) -> None:
    from django.conf import settings

    logging.config.dictConfig(settings.LOGGING)


@celeryd_init.connect
@beat_init.connect
def refuse_wrong_settings(**_: Any) -> None:
    from events.checks import exit_on_errors

    exit_on_errors()


@celeryd_init.connect
def send_heartbeats(conf: Any, **_: Any) -> None:
    """To RabbitMQ: a worker whose connection is dead hears of it, and its tasks go to others, within half a minute."""
    conf.broker_heartbeat = HEARTBEAT_SECONDS


@worker_init.connect
def share_memory(**_: Any) -> None:
    """As gunicorn.py does: the processes that are forked from here on go on sharing what is loaded now."""
    gc.collect()
    gc.freeze()


@celeryd_init.connect
def remember_the_main_process(**_: Any) -> None:
    app.main_process = os.getpid()


@worker_process_init.connect
@beat_embedded_init.connect
def end_with_the_main_process(**_: Any) -> None:
    end_with(app.main_process)


@worker_process_init.connect
def end_soon_after_the_last_task(**_: Any) -> None:
    """A worker that is stopped while a task ends may never hear that it has ended, and its pool waits for that.

    billiard's 30 s are longer than anyone gives a worker to stop; it would be killed. An end that is not heard means a
    task that is delivered again, which finds nothing to do.
    """
    from billiard import pool

    pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = round(1 / pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL)


@heartbeat_sent.connect
def note_worker(sender: Any, **_: Any) -> None:
    """Celery's own heartbeat, every two seconds in the worker's main process, carries ours."""
    from django.db import connection

    from events import state

    state.note("worker", sender.eventer.hostname)
    # A worker forks its pool from this process, and an open SQLite connection must not cross a fork.
    connection.close()


@before_task_publish.connect
def send_request_id(headers: dict[str, Any], **_: Any) -> None:
    """A task knows which request rang for it, and its log lines say so."""
    headers["request_id"] = request_id.get()


@task_prerun.connect
def receive_request_id(task: Any, **_: Any) -> None:
    request_id.set(getattr(task.request, "request_id", None) or "")


@task_postrun.connect
def forget_request_id(**_: Any) -> None:
    request_id.set("")


@worker_ready.connect
def ring_once(**_: Any) -> None:
    """What was accepted while no worker ran is drained now, whether or not its ring survived."""
    from events.inbox import ring

    ring(even_if_rung=True)
