"""Whether the parts of the service are there: database, broker, workers, beat, and how old the inbox has grown.

Each question is answered within a second or two and never raises: the answer is a Part that is well, or says what is
wrong.

Workers and beat say that they are there by a row in the database, the one thing that all parts share whatever the
broker and the cache are. Asking workers over the broker (celery inspect) would hold a web thread for a second each
time, and would not find one that is only busy.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from celery import current_app
from django.db import connection
from django.utils import timezone

from events import inbox
from events.models import Batch, Heartbeat

log = logging.getLogger(__name__)

#: Seconds between two heartbeats of a part.
HEARTBEAT_SECONDS = 5
#: Seconds after which a part that said nothing is taken to be gone; three heartbeats may be late or lost.
GONE_SECONDS = 20
#: Seconds without a stored batch, while one is due, after which workers that say that they are there are not believed.
#: Twice what a worker takes that has to wait for the database, gives up and is called again.
STALLED_SECONDS = 30
#: Seconds after which a part that is gone is forgotten: somebody has taken it away.
FORGOTTEN_SECONDS = 24 * 3600
#: Seconds that the broker may take to answer.
BROKER_SECONDS = 1
#: Seconds that a batch may be pending before somebody should look: drains begin within two.
LATE_SECONDS = 60

WORKER, BEAT = "worker", "beat"


@dataclass(slots=True)
class Part:
    """One part of the service, and in a few words how it is."""

    name: str
    well: bool
    detail: str


def database() -> Part:
    """Whether the database answers, and takes writes."""
    began = time.perf_counter()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        refusal = read_only()
    except Exception as error:
        return Part("database", False, _reason(error))
    return Part("database", not refusal, refusal or _answered(began))


def read_only() -> str:
    """Why the database takes no writes; empty where it does. Costs one short query, and no lock.

    Raises:
        django.db.DatabaseError: the database is away.
    """
    if connection.vendor == "sqlite":
        file = Path(connection.settings_dict["NAME"])
        for path in (file.parent, file):
            if not os.access(path, os.W_OK):
                return f"{path} is read-only"
        return ""
    with connection.cursor() as cursor:
        # Also on while the server is a standby.
        cursor.execute("SHOW transaction_read_only")
        return "it is read-only: a standby, or set so" if cursor.fetchone() == ("on",) else ""


def broker() -> Part:
    """Whether the broker takes connections."""
    try:
        with current_app.connection_for_write(connect_timeout=BROKER_SECONDS) as link:
            # Imports the transport; what that takes says nothing about the broker.
            _ = link.transport
            began = time.perf_counter()
            link.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_SECONDS)
    except Exception as error:
        return Part("broker", False, _reason(error))
    return Part("broker", True, _answered(began))


def workers() -> Part:
    """Whether at least one worker is there, and stores what is due."""
    part = _by_heartbeat("workers", WORKER, lambda names: f"{len(names)} running")
    if part.well and (seconds := _stalled_seconds()):
        return Part(part.name, False, f"running, but nothing was stored for {seconds:.0f} s although something is due")
    return part


def _stalled_seconds() -> float | None:
    """How long nothing has been stored although something was due, where that is longer than a working drain takes."""
    waited = oldest_pending_seconds()
    if waited is None or waited <= STALLED_SECONDS:
        return None
    now = timezone.now()
    # What lies in the future was written by a clock that was ahead.
    stored = Batch.objects.filter(processed_at__isnull=False, processed_at__lte=now).order_by("-processed_at")
    try:
        last = stored.values_list("processed_at", flat=True).first()
    except Exception:
        return None
    seconds = waited if last is None else min(waited, (now - last).total_seconds())
    return seconds if seconds > STALLED_SECONDS else None


def beat() -> Part:
    """Whether beat is there: it rings for what was forgotten, and starts retention."""
    return _by_heartbeat("beat", BEAT, lambda _: "running")


def oldest_pending_seconds() -> float | None:
    """How long the batch that has waited longest has been due; None where none is or the database is away."""
    try:
        since = inbox.due_since()
    except Exception:
        return None
    return None if since is None else max(0.0, (timezone.now() - since).total_seconds())


def note(part: str, name: str) -> None:
    """Says that a part is there. To be called often: it writes once in HEARTBEAT_SECONDS, and never raises.

    Args:
        part: WORKER or BEAT.
        name: tells several of the same kind apart, as host and process.
    """
    if time.monotonic() < _silent_until.get(part, 0.0):
        return
    _silent_until[part] = time.monotonic() + HEARTBEAT_SECONDS
    now = timezone.now()
    try:
        Heartbeat.objects.update_or_create(part=part, name=name, defaults={"seen_at": now})
        Heartbeat.objects.filter(seen_at__lt=now - timedelta(seconds=FORGOTTEN_SECONDS)).delete()
    except Exception as error:
        log.warning("heartbeat not written: %s", error)


#: By part, when this process may say again that it is there, on the monotonic clock.
_silent_until: dict[str, float] = {}


def _by_heartbeat(title: str, part: str, well: Callable[[list[str]], str]) -> Part:
    try:
        heartbeats = dict(Heartbeat.objects.filter(part=part).values_list("name", "seen_at"))
    except Exception as error:
        return Part(title, False, f"unknown: {_reason(error)}")
    if not heartbeats:
        return Part(title, False, "none has started yet")
    now = timezone.now()
    # A heartbeat from the future was written by a clock that was ahead, and says nothing about now.
    present = [name for name, at in heartbeats.items() if abs((now - at).total_seconds()) <= GONE_SECONDS]
    if not present:
        return Part(title, False, f"last seen {max(heartbeats.values()):%Y-%m-%d %H:%M:%S} UTC")
    return Part(title, True, well(present))


def _answered(began: float) -> str:
    milliseconds = (time.perf_counter() - began) * 1000
    return "answers in < 1 ms" if milliseconds < 1 else f"answers in {milliseconds:.0f} ms"


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
