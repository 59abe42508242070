"""Proves the books: recounts them from the rows and sets each invariant's two sides beside each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.db import connection
from django.db.models import Count, Exists, F, OuterRef, Q, Sum

from events.erasure import ERASED
from events.models import Batch, Duplicate, Erasure, Event, Pruned, TopicTotal
from events.stats import books


@dataclass(slots=True)
class Finding:
    """One invariant and its two sides, which are equal when it holds."""

    claim: str
    left: int
    right: int

    @property
    def holds(self) -> bool:
        return self.left == self.right


#: How a transaction that only reads one snapshot begins. Django's atomic() would take SQLite's writer lock.
_BEGIN = {
    "sqlite": "BEGIN DEFERRED",
    "postgresql": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
}


def audit() -> list[Finding]:
    """Recounts every event and batch, in one snapshot; publishing and storing go on meanwhile.

    Returns:
        A finding for each invariant of the books, and for each rule that rows keep among themselves.
    """
    with _snapshot():
        return _findings()


@contextmanager
def _snapshot() -> Iterator[None]:
    if connection.in_atomic_block:
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute(_BEGIN[connection.vendor])
        try:
            yield
        finally:
            cursor.execute("ROLLBACK")


def _findings() -> list[Finding]:
    kept = books()
    by_status = {
        row["status"]: row
        for row in Batch.objects.order_by()
        .values("status")
        .annotate(received=Sum("received"), unique=Sum("unique"), duplicates=Sum("duplicates"))
    }
    received = sum(row["received"] for row in by_status.values())
    processed = by_status.get("processed", {"received": 0, "unique": 0, "duplicates": 0})
    pruned = Pruned.objects.first() or Pruned()
    expired = Q(id__lte=pruned.expired_through)
    by_topic = {
        topic: (rows, rows_expired)
        for topic, rows, rows_expired in Event.objects.order_by()
        .values_list("topic")
        .annotate(Count("pk"), expired=Count("pk", filter=expired))
    }
    events = sum(rows for rows, _ in by_topic.values())
    removed = sum(TopicTotal.objects.values_list("removed", flat=True))
    totals = {
        topic: (unique - removed, expired - removed)
        for topic, unique, expired, removed in TopicTotal.objects.values_list("topic", "unique", "expired", "removed")
    }
    nothing = 0, 0
    wrong_topics = sum(
        by_topic.get(topic, nothing) != totals.get(topic, nothing) for topic in by_topic.keys() | totals.keys()
    )
    payloads = Event.objects.filter(expired & ~Q(payload="") | ~expired & Q(payload="")).count()
    wrong_batches = Batch.objects.filter(status="processed").exclude(received=F("unique") + F("duplicates")).count()
    bodies = Batch.objects.filter(
        Q(status__in=["processed"], body__isnull=False)
        | Q(status__in=["pending", "failed"], body__isnull=True)
        | Q(status="processed", processed_at=None)
        | (~Q(status="processed") & Q(processed_at__isnull=False))
    ).count()
    erased = Erasure.objects.filter(topic=OuterRef("topic"), event_id=OuterRef("event_id"))
    kept_of_erased = (
        Event.objects.filter(Exists(erased)).exclude(payload__in=[ERASED, ""]).count()
        + Duplicate.objects.filter(Exists(erased)).exclude(payload="").count()
        if Erasure.objects.exists()
        else 0
    )
    and_removed = " + removed ones" if pruned.batches else ""
    return [
        Finding(f"received = events of all batches{and_removed}", kept.received, received + pruned.received),
        Finding(
            "received = unique + duplicates of processed batches + what is open",
            kept.received,
            processed["unique"]
            + processed["duplicates"]
            + kept.pending
            + kept.failed
            + kept.discarded
            + pruned.received,
        ),
        Finding(f"unique = stored events{' + removed ones' if removed else ''}", kept.unique, events + removed),
        Finding(
            f"unique = new events of processed batches{and_removed}", kept.unique, processed["unique"] + pruned.unique
        ),
        Finding(
            f"duplicates = dropped events of processed batches{and_removed}",
            kept.duplicates,
            processed["duplicates"] + pruned.duplicates,
        ),
        Finding("removed batches: received = unique + duplicates", pruned.received, pruned.unique + pruned.duplicates),
        Finding("topics whose total differs from their events", wrong_topics, 0),
        Finding("events that have a payload and should not, or the other way round", payloads, 0),
        Finding("erased events of which something is kept", kept_of_erased, 0),
        Finding("processed batches whose receipt does not add up", wrong_batches, 0),
        Finding("batches whose body or date does not fit their status", bodies, 0),
    ]
