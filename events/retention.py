"""Takes away what is too old, a slice at a time, and writes into the books what went: they stay exact throughout.

Events expire in the order they were stored, so "expired" is one number, Pruned.expired_through: what is listed lies
beyond it, and no index and no insert has to know of it. An event goes when it is old enough and so is all that was
stored before it; one that was stored long after it was accepted stays that much longer, never shorter.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

from django.conf import settings
from django.db.models import Count, F, QuerySet, Sum
from django.utils import timezone

from events import horizon
from events.models import Batch, Delay, Duplicate, Event, Minute, Pruned, TopicMinute, TopicTotal
from events.turn import writing

#: Name of the task that beat starts once a day (tasks.py).
PRUNE = "events.prune"
#: Seconds that a slice should hold SQLite's one writer lock: about as long as a chunk of the drain.
SLICE_SECONDS = 0.03
#: Rows of the first slice of a kind, and of any. Sizes follow what the last slice took: payloads have two bytes or ten
#: million, disks differ by a factor of a hundred.
FIRST_SLICE_ROWS = 100
LARGEST_SLICE_ROWS = 5_000
#: Seconds after which counting rows of one kind for a dry run stops, and rows that are counted at first.
COUNT_SECONDS = 2.0
FIRST_COUNT_ROWS = 50_000
#: Seconds between two slices in which waiting writers get their turn.
PAUSE_SECONDS = 0.02
#: Days that rows per minute stay. The charts go back one day; a week more compares it with the same day a week ago.
MINUTES_DAYS = 8


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows of one kind that one transaction took away."""

    kind: str
    rows: int


@dataclass(frozen=True, slots=True)
class Due:
    """Rows of one kind that are old enough to go; `all` is False where time was up before they were counted."""

    kind: str
    rows: int
    all: bool


#: Takes away at most so many rows that are older than a moment, in the caller's transaction. Returns how many went;
#: where none did, none is left.
Step = Callable[[datetime, int, Pruned], int]


def prune() -> Iterator[Slice]:
    """Takes away what is too old, as the settings say. Each slice is committed when it is given out; stop at any time.

    Any number of these may run at once, beside publishes and drains.

    Raises:
        django.db.OperationalError: the database is away, locked or full; what went is in the books, what is left stays.
    """
    now = timezone.now()
    for kind, days, step in _steps():
        if days is None:
            continue
        before = now - timedelta(days=days)
        size = FIRST_SLICE_ROWS
        while True:
            with writing():
                began = time.monotonic()
                gone = step(before, size, _row())
            took = time.monotonic() - began
            if not gone:
                break
            yield Slice(kind, gone)
            size = min(LARGEST_SLICE_ROWS, max(1, int(size * min(2.0, SLICE_SECONDS / max(took, 0.001)))))
            time.sleep(PAUSE_SECONDS)


def would_go() -> Iterator[Due]:
    """Counts what prune() would take away now. It only reads, and counts each kind for about COUNT_SECONDS at most."""
    now = timezone.now()
    pruned = Pruned.objects.filter(pk=1).first() or Pruned()
    expired_through = pruned.expired_through
    if settings.EVENT_RETENTION_DAYS:
        listed = _settled(Event.objects.filter(id__gt=expired_through))
        count, last, complete = _count_oldest(listed, now - timedelta(days=settings.EVENT_RETENTION_DAYS))
        # Their keys may be old enough as well.
        expired_through = last or expired_through
        yield Due("events expired", count, complete)
    if settings.DEDUP_RETENTION_DAYS:
        expired = Event.objects.filter(id__lte=expired_through)
        count, _, complete = _count_oldest(expired, now - timedelta(days=settings.DEDUP_RETENTION_DAYS))
        yield Due("keys removed", count, complete)
    for kind, days, rows, moment in _rows_with_a_moment():
        if days is not None:
            old = rows.filter(**{f"{moment}__lt": now - timedelta(days=days)}).order_by(moment)
            yield Due(kind, *_count(old))


def _count_oldest(events: QuerySet[Event], before: datetime) -> tuple[int, int, bool]:
    """How many events would go, the number of the last of them, and whether these are all."""
    until = time.monotonic() + COUNT_SECONDS
    count = last = 0
    while True:
        some = _oldest(events.filter(id__gt=last), before, LARGEST_SLICE_ROWS)
        count += len(some)
        last = some[-1][0] if some else last
        complete = len(some) < LARGEST_SLICE_ROWS
        if complete or time.monotonic() > until:
            return count, last, complete


def _count(rows: QuerySet[Any]) -> tuple[int, bool]:
    """How many rows there are, and whether these are all."""
    until = time.monotonic() + COUNT_SECONDS
    most = FIRST_COUNT_ROWS
    while True:
        # The database stops counting at the limit, so that no look takes longer than twice the one before.
        count = rows[:most].count()
        if count < most or time.monotonic() > until:
            return count, count < most
        most *= 2


def _steps() -> Iterable[tuple[str, int | None, Step]]:
    """What is taken away, after how many days (None: never), and by what."""
    yield "events expired", settings.EVENT_RETENTION_DAYS or None, _expire
    yield "keys removed", settings.DEDUP_RETENTION_DAYS or None, _remove_keys
    yield "batches removed", settings.BATCH_RETENTION_DAYS or None, _remove_batches
    for kind, days, rows, moment in _rows_with_a_moment()[1:]:
        yield kind, days, _remover(rows, moment)


def _rows_with_a_moment() -> Sequence[tuple[str, int | None, QuerySet[Any], str]]:
    """What goes by the moment in one of its columns: batches first, then what nothing else counts."""
    return [
        ("batches removed", settings.BATCH_RETENTION_DAYS or None, Batch.objects.all(), "processed_at"),
        # The log is off at 0, and then nothing of it is kept.
        ("duplicates removed", settings.DUPLICATE_LOG_DAYS, Duplicate.objects.all(), "received_at"),
        ("minutes removed", MINUTES_DAYS, Minute.objects.all(), "minute"),
        ("minutes of topics removed", MINUTES_DAYS, TopicMinute.objects.all(), "minute"),
        ("minutes of delays removed", MINUTES_DAYS, Delay.objects.all(), "minute"),
    ]


def _row() -> Pruned:
    """The row of what was taken away, locked, so that on any database one slice is taken at a time."""
    row: Pruned = Pruned.objects.select_for_update().get_or_create(pk=1)[0]
    return row


def _expire(before: datetime, size: int, pruned: Pruned) -> int:
    """Takes the payloads of the oldest events that are listed, and with that takes them off the list."""
    gone = _oldest(_settled(Event.objects.filter(id__gt=pruned.expired_through)), before, size)
    if gone:
        last = gone[-1][0]
        Event.objects.filter(id__gt=pruned.expired_through, id__lte=last).update(payload="")
        pruned.expired_through = last
        pruned.save(update_fields=["expired_through"])
        _count_topics("expired", gone)
    return len(gone)


def _settled(events: QuerySet[Event]) -> QuerySet[Event]:
    # Nothing may appear below what has expired: it would never be listed.
    settled = horizon.settled()
    return events if settled is None else events.filter(id__lte=settled)


def _remove_keys(before: datetime, size: int, pruned: Pruned) -> int:
    """Takes the oldest of the events that have expired already."""
    gone = _oldest(Event.objects.filter(id__lte=pruned.expired_through), before, size)
    if gone:
        Event.objects.filter(id__lte=gone[-1][0]).delete()
        _count_topics("removed", gone)
    return len(gone)


def _oldest(events: Any, before: datetime, size: int) -> list[tuple[int, str]]:
    """Number and topic of the first events, in the order they were stored, up to one that was accepted later."""
    rows = events.order_by("id").values_list("id", "topic", "received_at")[:size]
    return [(pk, topic) for pk, topic, _ in takewhile(lambda row: row[2] < before, rows)]


def _count_topics(counter: str, gone: Sequence[tuple[int, str]]) -> None:
    counts = Counter(topic for _, topic in gone)
    # In the order in which the drain adds to them, the database's, so that the two cannot deadlock each other.
    list(TopicTotal.objects.filter(topic__in=counts).order_by("topic").select_for_update())
    for topic, count in counts.items():
        TopicTotal.objects.filter(topic=topic).update(**{counter: F(counter) + count})


def _remove_batches(before: datetime, size: int, pruned: Pruned) -> int:
    """Takes processed batches, and adds what they held to the totals of those that were taken."""
    oldest = Batch.objects.filter(processed_at__lt=before).order_by("processed_at").values_list("pk", flat=True)[:size]
    gone = Batch.objects.filter(pk__in=list(oldest))
    sums = gone.aggregate(
        batches=Count("pk"), received=Sum("received"), unique=Sum("unique"), duplicates=Sum("duplicates")
    )
    if sums["batches"]:
        Pruned.objects.filter(pk=pruned.pk).update(**{name: F(name) + count for name, count in sums.items()})
        gone.delete()
    return int(sums["batches"])


def _remover(rows: QuerySet[Any], moment: str) -> Step:
    def remove(before: datetime, size: int, pruned: Pruned) -> int:
        oldest = rows.filter(**{f"{moment}__lt": before}).order_by(moment).values_list("pk", flat=True)[:size]
        gone, _ = rows.filter(pk__in=list(oldest)).delete()
        return gone

    return remove
