"""Tells a webhook (NOTIFY_URL) when something needs an operator, and when it is well again: one message a cause.

One web process of each host looks every few seconds. What has been told stands in the database, so that a restart or a
second host repeats nothing; a message that could not be sent is sent at the next look.
"""

import fcntl
import logging
import os
import shutil
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.db.models import F, Q
from django.utils import timezone

from events import health, inbox
from events.models import Alert, Batch
from events.turn import writing

log = logging.getLogger(__name__)

#: Seconds between two looks.
LOOK_SECONDS = 10
#: Seconds that a component has to be down before it is told: a restart takes a few, and is nobody's business.
DOWN_SECONDS = 30
#: Seconds in which another host that began to send a message has to be done; then it is taken to have died.
SENDING_SECONDS = 60
#: Seconds that the webhook may take to answer.
WEBHOOK_SECONDS = 10
#: Characters of a batch's error that a message repeats.
ERROR_SHOWN = 200
#: Shares of INBOX_MAX_EVENTS: from the first on the inbox counts as filling up, at the second as well again.
INBOX_FULL_SHARE, INBOX_WELL_SHARE = 0.8, 0.5
#: Shares of the disk that are free: below the first it counts as nearly full, from the second on as well again.
DISK_FULL_SHARE, DISK_WELL_SHARE = 0.05, 0.07


@dataclass(frozen=True, slots=True)
class Cause:
    """Something that an operator is told of.

    Attributes:
        title: what it is called in a message.
        patience: seconds for which it has to last before it is told, and be over before that is told.
    """

    title: str
    patience: int = 0


CAUSES = {
    "database": Cause("the database is away", DOWN_SECONDS),
    "broker": Cause("the broker is away", DOWN_SECONDS),
    "worker": Cause("no worker is running", DOWN_SECONDS),
    "beat": Cause("beat is away", DOWN_SECONDS),
    "dead_letter": Cause("there are dead letters"),
    "inbox": Cause("the inbox is filling up"),
    "disk": Cause("the disk is nearly full"),
}


class NotSent(Exception):
    """The webhook did not take a message; its text says why, and holds nothing secret."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found of one cause.

    Attributes:
        cause: a key of CAUSES.
        firing: whether an operator is needed; None between the two limits of a cause, where it stays as it was.
        detail: a sentence for the operator.
    """

    cause: str
    firing: bool | None
    detail: str = ""


def send(text: str, **fields: Any) -> None:
    """Posts a message to NOTIFY_URL, in the form that Slack's incoming webhooks take ({"text": …}).

    Args:
        text: the message.
        fields: what programs read beside it; Slack ignores it.

    Raises:
        NotSent: it was not taken.
    """
    host = urlsplit(settings.NOTIFY_URL).hostname
    try:
        answer = httpx.post(settings.NOTIFY_URL, json={"text": text, **fields}, timeout=WEBHOOK_SECONDS)
    except httpx.HTTPError as error:
        # Not str(error): some of them repeat the address, and its path is the webhook's password.
        raise NotSent(f"{host} could not be reached ({type(error).__name__})") from None
    if not answer.is_success:
        raise NotSent(f"{host} answered {answer.status_code}")


def look() -> list[Finding]:
    """Looks at every cause.

    Raises:
        django.db.DatabaseError: the database is away.
    """
    components = {component.name: component for component in health.report().parts}
    findings = [
        Finding(name, components[name].word != "ok", components[name].detail)
        for name in CAUSES
        if name in components and name != "database"
    ]
    return [*findings, _dead_letters(), _inbox(), _disk()]


def tell(findings: list[Finding]) -> None:
    """Notes what has changed, and sends what has not been told yet.

    Raises:
        django.db.DatabaseError: the database is away.
    """
    known = {alert.cause: alert for alert in Alert.objects.all()}
    for finding in findings:
        alert = known.get(finding.cause)
        if finding.firing is not None and finding.firing != (alert is not None and alert.firing):
            _note(finding)
    for alert in Alert.objects.exclude(told=F("firing")).order_by("changed_at", "pk"):
        if timezone.now() >= alert.changed_at + timedelta(seconds=CAUSES[alert.cause].patience):
            _tell(alert)


def message(alert: Alert) -> str:
    """What people read of an alert."""
    title = CAUSES[alert.cause].title
    began = f"{alert.began_at:%Y-%m-%d %H:%M:%S} UTC"
    if alert.firing:
        return f"Event aggregator: {title}, since {began}. {alert.detail}".rstrip()
    return f"Event aggregator: well again ({title}, from {began} to {alert.changed_at:%Y-%m-%d %H:%M:%S} UTC)."


def _note(finding: Finding) -> None:
    now = timezone.now()
    began = {"began_at": now} if finding.firing else {}
    with writing():
        Alert.objects.get_or_create(cause=finding.cause, defaults={"began_at": now, "changed_at": now})
        # Of several hosts that see it, one changes the row.
        Alert.objects.filter(cause=finding.cause, firing=not finding.firing).update(
            firing=finding.firing, changed_at=now, detail=finding.detail, **began
        )


def _tell(alert: Alert) -> None:
    now = timezone.now()
    free = Q(sending_at=None) | Q(sending_at__lt=now - timedelta(seconds=SENDING_SECONDS))
    with writing():
        mine = Alert.objects.filter(free, pk=alert.pk, firing=alert.firing, told=alert.told).update(sending_at=now)
    if not mine:
        return
    told = _sent(alert)
    with writing():
        Alert.objects.filter(pk=alert.pk).update(sending_at=None, told=alert.firing if told else alert.told)


def _sent(alert: Alert) -> bool:
    status = "firing" if alert.firing else "resolved"
    try:
        send(message(alert), cause=alert.cause, status=status, since=alert.began_at.isoformat())
    except NotSent as error:
        log.warning("an alert was not sent, and is tried again: %s", error)
        return False
    log.info("alert sent", extra={"cause": alert.cause, "status": status})
    return True


def _dead_letters() -> Finding:
    dead = Batch.objects.filter(processed_at=None, status=Batch.Status.FAILED).order_by("-pk")
    newest = dead.values_list("pk", "error").first()
    if newest is None:
        return Finding("dead_letter", False)
    pk, error = newest
    detail = f"Batch {pk}: {error[:ERROR_SHOWN]}. Replay or discard it in the admin or with manage.py."
    return Finding("dead_letter", True, detail)


def _inbox() -> Finding:
    pending, limit = inbox.pending_events(), settings.INBOX_MAX_EVENTS
    if not limit:
        return Finding("inbox", False)
    detail = f"{pending:,} of at most {limit:,} events are pending. At the limit publishes are refused with 503."
    return Finding("inbox", _between(pending / limit, INBOX_FULL_SHARE, INBOX_WELL_SHARE), detail)


def _disk() -> Finding:
    usage = shutil.disk_usage(settings.DATA_DIR)
    free = usage.free / usage.total
    detail = f"{usage.free / 1e9:.1f} GB ({free:.1%}) are free in {settings.DATA_DIR}."
    return Finding("disk", _between(-free, -DISK_FULL_SHARE, -DISK_WELL_SHARE), detail)


def _between(value: float, firing_from: float, well_to: float) -> bool | None:
    if value >= firing_from:
        return True
    return None if value > well_to else False


# --- The process that looks -------------------------------------------------------------------------------------------


def start() -> None:
    """Looks from now on, in a thread of this process, as long as no other process of this host does."""
    threading.Thread(target=_watch, name="alerts", daemon=True).start()


def _watch() -> NoReturn:
    pause = threading.Event()
    lock = _Lock(settings.DATA_DIR / "run" / "alerts.lock")
    database = DatabaseWatch()
    while True:
        pause.wait(LOOK_SECONDS)
        try:
            if lock.is_mine():
                database.look()
                tell(look())
        except (DatabaseError, InterfaceError):
            log.debug("the database is away: what else is wrong is told when it is back")
        except Exception:
            log.exception("a look for alerts failed")
        finally:
            connection.close()


class DatabaseWatch:
    """Tells that the database is away and back: the one cause that cannot be noted there, but in this process."""

    def __init__(self) -> None:
        now = timezone.now()
        self._alert = Alert(cause="database", firing=False, told=False, began_at=now, changed_at=now)

    def look(self) -> None:
        """Asks for the database, and sends what has not been told yet."""
        now, alert = timezone.now(), self._alert
        component = next(component for component in health.report().parts if component.name == "database")
        if component.down != alert.firing:
            alert.firing, alert.changed_at, alert.detail = component.down, now, component.detail
            if component.down:
                alert.began_at = now
        due = alert.changed_at + timedelta(seconds=CAUSES["database"].patience)
        if alert.told != alert.firing and now >= due and _sent(alert):
            alert.told = alert.firing


class _Lock:
    """Whoever has the file locked looks; the kernel frees it when that process dies."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor: int | None = None

    def is_mine(self) -> bool:
        if self._descriptor is not None:
            return True
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True
