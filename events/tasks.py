"""The Celery tasks. Each calls one function and returns what Flower should show."""

import logging
import time
from dataclasses import asdict

from celery import current_app, shared_task
from django.conf import settings

from events import inbox, metrics, retention, store

log = logging.getLogger(__name__)

#: Seconds after which the task of retention makes way: on SQLite the worker does one thing at a time, and it is there
#: for what comes in.
PRUNE_SECONDS = 1.0


class BatchesFailed(Exception):
    """Some batches could not be stored. All others are, and these are tried again, or dead letters now."""


# What a task throws is no news for the log, which has it already, but Flower counts the task as failed.
@shared_task(name=inbox.PROCESS_INBOX, throws=(BatchesFailed,))  # type: ignore[untyped-decorator]  # Celery has no types
def process_inbox() -> str:
    """Stores what is pending, and rings again if something is left when its time is over.

    Returns:
        What it did, in words.

    Raises:
        BatchesFailed: some batches could not be stored; its text says what was done with all of them.
    """
    inbox.answer_doorbell()
    began = time.perf_counter()
    stored, more = store.drain(
        at_least=0.0 if settings.SHARED_DOORBELL else inbox.OWN_LOOK_SECONDS, when_full=inbox.ring
    )
    if more:
        inbox.ring(even_if_rung=True)
    if stored.batches:
        seconds = time.perf_counter() - began
        metrics.DRAIN_SECONDS.observe(seconds)
        failed = stored.failed_batches
        said = "stored" if not failed else "not stored" if failed == stored.batches else "stored, but not all"
        log.log(
            logging.WARNING if failed else logging.INFO,
            said,
            extra={**asdict(stored), "ms": round(seconds * 1000, 1)},
        )
    if stored.failed_batches:
        raise BatchesFailed(str(stored))
    return str(stored)


@shared_task(name=retention.PRUNE)  # type: ignore[untyped-decorator]
def prune() -> dict[str, int]:
    """Takes away what is too old; sends itself again if something is left when its time is over."""
    until = time.monotonic() + PRUNE_SECONDS
    gone: dict[str, int] = {}
    for taken in retention.prune():
        gone[taken.kind] = gone.get(taken.kind, 0) + taken.rows
        if time.monotonic() >= until:
            current_app.send_task(retention.PRUNE)
            break
    if gone:
        log.info("pruned", extra={kind.replace(" ", "_"): rows for kind, rows in gone.items()})
    return gone
