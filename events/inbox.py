"""Accepts a publish: one row on disk before the answer, then one ring of the doorbell, unless it already rings."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from celery import current_app
from django.conf import settings
from django.core.cache import cache
from django.db.models import Min, Q, QuerySet, Sum
from django.utils import timezone

from events import metrics, tracing, wire
from events.memory import drop_connection_after
from events.models import ApiKey, Batch
from events.origin import request_id
from events.turn import turn

log = logging.getLogger(__name__)

#: Name of the task that drains the inbox (tasks.py).
PROCESS_INBOX = "events.process_inbox"
#: Cache key of the doorbell; it is there while a ring is outstanding.
DOORBELL = "inbox-doorbell"
#: Seconds a ring stays outstanding at most: longer than a task takes to start, shorter than anyone minds waiting.
RING_SECONDS = 5
#: The same where each process has a doorbell of its own, which no worker can take back. It may send so often; what it
#: passes over meanwhile is seen by the drain that it rang for, which looks for longer than this.
OWN_RING_SECONDS = 0.1
#: Seconds a drain looks at least, where doorbells are not shared: two looks more than a ring stays outstanding.
OWN_LOOK_SECONDS = OWN_RING_SECONDS + 0.05
#: Seconds after which RabbitMQ drops such a ring that no worker was free for: those that were busy have made up for it.
OWN_RING_EXPIRES_SECONDS = 1.0
#: Seconds that RabbitMQ may take to confirm a ring. While it lacks memory or disk, it keeps publishers waiting.
CONFIRM_SECONDS = 2
#: Seconds without a try after the doorbell failed, so that a dead broker costs one request a pause, not every one.
RING_PAUSE_SECONDS = 1.0
#: Seconds until a failed batch is tried again, doubled with every attempt, up to the longest.
FIRST_RETRY_SECONDS = 2
LONGEST_RETRY_SECONDS = 300
#: Seconds a process goes by its own count of what is pending before it asks the database again.
PENDING_KNOWN_SECONDS = 1.0


class InboxFull(Exception):
    """INBOX_MAX_EVENTS are pending; try again when the workers have caught up."""


class KeyReused(Exception):
    """The idempotency key was used before, for another body."""


def accept(events: Sequence[wire.Event], *, idempotency_key: str | None = None, api_key: ApiKey | None = None) -> Batch:
    """Puts a publish on disk and rings for it to be processed.

    Args:
        events: what wire.decode() returned; at least one.
        idempotency_key: the publisher's own name for this publish. A second publish with the same name is answered with
            the first one's batch and not accepted again (draft-ietf-httpapi-idempotency-key-header).
        api_key: whose publish it is; each has idempotency keys of its own.

    Returns:
        The batch, committed. When it is an earlier publish's, its accepted_at lies in the past and nothing was added.

    Raises:
        InboxFull: too much is pending; nothing was accepted.
        KeyReused: the key belongs to another body; nothing was accepted.
        django.db.DatabaseError: the database is away, locked or full; nothing was accepted.
    """
    if not _has_room(len(events)):
        raise InboxFull
    now = timezone.now()
    body = wire.encode(events)
    batch = Batch(
        accepted_at=now,
        next_attempt_at=now,
        received=len(events),
        body=body,
        size=len(body),
        status=Batch.Status.PENDING,
        api_key=api_key,
        request_id=request_id.get(),
        traceparent=tracing.traceparent(),
    )
    if idempotency_key is not None:
        batch.idempotency_key = idempotency_key
        batch.fingerprint = sha256(body).digest()
    while True:
        if _group.commit(batch):
            ring()
        if batch.pk:
            return batch
        if earlier := _earlier(batch):
            return earlier
        # Retention has taken it just now, and its key is free again.


def ring(*, even_if_rung: bool = False) -> bool:
    """Sends the task that drains the inbox, unless one is on its way already.

    Never raises: a ring that is lost is made up for by beat.

    Args:
        even_if_rung: send it whatever the doorbell says.

    Returns:
        Whether a task was sent.
    """
    if time.monotonic() < _doorbell.silent_until:
        return False
    shared = settings.SHARED_DOORBELL
    try:
        if not cache.add(DOORBELL, 1, timeout=RING_SECONDS if shared else OWN_RING_SECONDS) and not even_if_rung:
            metrics.RING_SKIPPED.inc()
            return False
        current_app.send_task(
            PROCESS_INBOX,
            # By the broker's clock: hosts' clocks differ.
            expiration=None if shared or even_if_rung else OWN_RING_EXPIRES_SECONDS,
            confirm_timeout=CONFIRM_SECONDS,
        )
    except Exception as error:
        # Every broker and cache has errors of its own; none of them may turn an accepted publish into a failed one.
        _doorbell.silent_until = time.monotonic() + RING_PAUSE_SECONDS
        metrics.RING_FAILED.inc()
        log.warning("doorbell out of order: %s; what was accepted is safe and will be processed when it is back", error)
        return False
    metrics.RING_SENT.inc()
    return True


def answer_doorbell() -> None:
    """Says that the inbox is about to be read: whoever commits after this rings again."""
    try:
        cache.delete(DOORBELL)
    except Exception as error:
        log.warning("doorbell out of order: %s", error)


class _Doorbell:
    silent_until = 0.0


_doorbell = _Doorbell()


#: What a publish writes; the rest of a batch's columns begin with what the database gives them.
_COLUMNS = ("accepted_at", "next_attempt_at", "received", "body", "size", "api_key_id", "request_id", "traceparent")
#: What one with an idempotency key writes besides.
_KEYED_COLUMNS = (*_COLUMNS, "idempotency_key", "fingerprint")


class _Waiting:
    """A batch on its way into the inbox: done is set once it is on disk, or error once it cannot be."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.done = False
        self.error: BaseException | None = None

    @property
    def key(self) -> tuple[str, int]:
        """The idempotency key and whose it is: what no other batch may have. An empty one is none."""
        return self.batch.idempotency_key or "", self.batch.api_key_id or 0

    def row(self, columns: Sequence[str]) -> list[Any]:
        return [getattr(self.batch, name) for name in columns]


class GroupCommit:
    """Writes the batches of all threads that wait at the same time in one statement, which is one transaction.

    A commit costs one wait for the disk, whatever it holds. One thread writes for all that have come by the time it
    gets its turn; while it does, the next ones gather. `make bench` shows what that is worth.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._writer = threading.Lock()

    def commit(self, batch: Batch) -> bool:
        """Returns when the batch is on disk: whether this thread wrote it, so that one thread rings for all.

        A batch whose idempotency key another one has is not written, and has no pk afterwards.

        Raises:
            django.db.DatabaseError: what the database raised for the group; none of it is on disk.
        """
        mine = _Waiting(batch)
        self._waiting.append(mine)
        wrote = False
        with self._writer:
            if not mine.done:
                self._write()
                wrote = True
        if mine.error:
            raise mine.error
        return wrote

    def _write(self) -> None:
        group: list[_Waiting] = []
        error: BaseException | None = None
        try:
            with turn():
                group = self._gathered()
                if any(waiting.batch.idempotency_key for waiting in group):
                    _insert_keyed(group)
                else:
                    keys = Batch.objects.insert_all(_COLUMNS, [waiting.row(_COLUMNS) for waiting in group])
                    for waiting, pk in zip(group, keys, strict=True):
                        waiting.batch.pk = pk
        except BaseException as raised:
            error = raised
            group = group or self._gathered()
        for waiting in group:
            waiting.error = error
            waiting.done = True
        drop_connection_after(sum(waiting.batch.size for waiting in group))

    def _gathered(self) -> list[_Waiting]:
        # One at a time: whoever is appended meanwhile is either in this group or left for the next.
        return [self._waiting.popleft() for _ in range(len(self._waiting))]


_group = GroupCommit()


def _insert_keyed(group: list[_Waiting]) -> None:
    """Inserts a group some of which have idempotency keys, but none whose key is taken."""
    # In one order everywhere: on PostgreSQL a key that another process is inserting is waited for.
    group = sorted(group, key=lambda waiting: waiting.key)
    rows = [waiting.row(_KEYED_COLUMNS) for waiting in group]
    inserted = Batch.objects.insert_all_new(_KEYED_COLUMNS, rows, returning=["id", "idempotency_key", "api_key_id"])
    # They come back in order, without those that were passed over.
    left = deque(inserted)
    for waiting in group:
        if left and (left[0][1] or "", left[0][2] or 0) == waiting.key:
            waiting.batch.pk = left.popleft()[0]
    if left:
        raise AssertionError("rows that were inserted came back in another order")


def _earlier(batch: Batch) -> Batch | None:
    """The batch that has the idempotency key, or None where it is gone.

    Raises:
        KeyReused: it is another publish.
    """
    earlier: Batch | None = Batch.objects.filter(
        api_key=batch.api_key_id, idempotency_key=batch.idempotency_key
    ).first()
    if earlier and bytes(earlier.fingerprint or b"") != batch.fingerprint:
        raise KeyReused
    return earlier


class _Pending:
    """How many events are pending, as this process knows it."""

    def __init__(self) -> None:
        self.events = 0
        self.asked_at = float("-inf")


_pending = _Pending()


def _has_room(count: int) -> bool:
    if not settings.INBOX_MAX_EVENTS:
        return True
    if time.monotonic() - _pending.asked_at > PENDING_KNOWN_SECONDS:
        _pending.events = pending_events()
        _pending.asked_at = time.monotonic()
    if _pending.events + count > settings.INBOX_MAX_EVENTS and _pending.events > 0:
        return False
    _pending.events += count
    return True


def pending() -> QuerySet[Batch]:
    """The batches that are neither stored nor given up."""
    return Batch.objects.filter(processed_at=None, status=Batch.Status.PENDING)


def due() -> QuerySet[Batch]:
    """The pending batches that may be stored now: all but those in the pause after a failed attempt.

    A first try depends on no clock. A pause that is longer than any can be was begun by a clock that was ahead.
    """
    now = timezone.now()
    longest = now + timedelta(seconds=LONGEST_RETRY_SECONDS)
    return pending().filter(Q(attempts=0) | Q(next_attempt_at__lte=now) | Q(next_attempt_at__gt=longest))


def anything_due() -> bool:
    """Whether a drain would find something to do now. Read from an index that holds open batches only."""
    return due().exists()


def pending_events() -> int:
    """How many accepted events are not processed yet. Read from an index that holds open batches only."""
    total = pending().aggregate(total=Sum("received"))["total"]
    return total or 0


def due_since() -> datetime | None:
    """When the batch that has waited longest became due, or None where none is.

    It is due when it is accepted or replayed, and again when the pause after a failed attempt is over.
    """
    since: datetime | None = due().aggregate(since=Min("next_attempt_at"))["since"]
    return since
