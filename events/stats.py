"""The books, read in one snapshot: what came in and what became of it. Never counts events."""

import time
from dataclasses import dataclass, field

from django.db.models import BigIntegerField, CharField, Count, F, QuerySet, Sum, Value

from events.keys import visible_publishers, visible_topics
from events.models import ApiKey, Batch, TopicTotal

#: When this service started, on the monotonic clock. gunicorn loads it in its master, so all processes share it.
_STARTED = time.monotonic()


@dataclass(slots=True)
class TopicBooks:
    """What became of one topic's events."""

    unique: int
    duplicates: int


@dataclass(slots=True)
class Books:
    """What became of all events that were ever accepted.

    At every instant received = unique + duplicates + pending + failed + discarded.
    """

    unique: int = 0
    duplicates: int = 0
    pending: int = 0
    failed: int = 0
    discarded: int = 0
    topics: dict[str, TopicBooks] = field(default_factory=dict)

    @property
    def received(self) -> int:
        return self.unique + self.duplicates + self.pending + self.failed + self.discarded


def books(key: ApiKey | None = None) -> Books:
    """Reads the books, or for a key that is bound to topics, as much of them as it may see.

    One statement, so one snapshot: an atomic block would take SQLite's writer lock just to read. Its cost depends on
    the number of topics and of open batches, never of events.
    """
    totals: QuerySet[TopicTotal] = TopicTotal.objects.all()
    batches = Batch.objects.filter(processed_at=None)
    if key and key.topics:
        # What is not stored yet has no topic here, but a publisher that could only use these.
        totals, batches = visible_topics(key), batches.filter(api_key__in=visible_publishers(key))
    topics = totals.order_by().values_list(Value("topic", CharField()), F("topic"), F("unique"), F("duplicates"))
    open_batches = (
        batches.order_by()
        .values("status")
        .values_list(
            Value("batches", CharField()),
            F("status"),
            Sum("received", output_field=BigIntegerField()),
            Count("pk"),
        )
    )
    result = Books()
    for kind, name, first, second in topics.union(open_batches, all=True):
        if kind == "topic":
            result.topics[name] = TopicBooks(first, second)
            result.unique += first
            result.duplicates += second
        elif name != Batch.Status.PROCESSED:
            # A processed batch without a date is for the audit to find; its events are in the totals.
            setattr(result, name, first)
    result.topics = dict(sorted(result.topics.items()))
    return result


def uptime() -> int:
    """Seconds since the service started."""
    return int(time.monotonic() - _STARTED)
