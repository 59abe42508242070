"""Beat's scheduler looks before it sends: with nothing to store no task is sent, so Flower shows drains that drain."""

import logging
import socket
from typing import Any

from celery import beat
from celery.schedules import schedstate
from django.db import connection

from events import inbox, state

log = logging.getLogger(__name__)


class Scheduler(beat.PersistentScheduler):
    """Celery's own, kept in a file, with two additions."""

    def tick(self, *args: Any, **options: Any) -> float:
        """One round, at least every two seconds. Says that beat is there."""
        state.note("beat", socket.gethostname())
        # Of a process that may fork, and an open SQLite connection must not cross a fork.
        connection.close()
        return float(super().tick(*args, **options))

    def is_due(self, entry: Any) -> schedstate:
        """As Celery says; but the inbox is drained only while something in it is due."""
        due = super().is_due(entry)
        if due.is_due and entry.task == inbox.PROCESS_INBOX and not _anything_due():
            return schedstate(is_due=False, next=entry.schedule.seconds)
        return due


def _anything_due() -> bool:
    try:
        return inbox.anything_due()
    except Exception as error:
        # The worker says what is wrong with the database, better than beat can.
        log.debug("the inbox could not be looked at: %s", error)
        return True
    finally:
        connection.close()
