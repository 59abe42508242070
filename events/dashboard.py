"""What the dashboard shows, read from the books and the counters in a handful of statements; none counts events."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import Count
from django.utils import timezone

from events import delays, state
from events.models import Batch, Delay, Minute, SourceTotal, TopicMinute
from events.stats import Books, books

#: Rows of each of the lists.
TOP = 6
#: Minutes that a sparkline shows.
SPARK_MINUTES = 60
#: Seconds for which what the broker said is good: every question is a connection of its own.
BROKER_KNOWN_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Window:
    """How far back the charts go, and how many minutes one of their bars stands for."""

    name: str
    title: str
    minutes: int
    step: int


WINDOWS = {
    window.name: window for window in (Window("hour", "Last hour", 60, 1), Window("day", "Last day", 24 * 60, 15))
}


@dataclass(slots=True)
class Total:
    """What was stored and dropped of one topic or source."""

    name: str
    unique: int
    duplicates: int
    differing: int = 0
    spark: list[int] = field(default_factory=list)

    @property
    def received(self) -> int:
        return self.unique + self.duplicates

    @property
    def share(self) -> float | None:
        """The share of duplicates, 0 to 1."""
        return self.duplicates / self.received if self.received else None


@dataclass(slots=True)
class Series:
    """What the charts draw: one value for each bar of the window, None where there is nothing to say."""

    times: list[datetime]
    unique: list[float]
    duplicates: list[float]
    share: list[float | None]
    p50: list[float | None]
    p99: list[float | None]


@dataclass(slots=True)
class Snapshot:
    """The dashboard at one moment. Delays are in seconds, events in the series are a minute."""

    at: datetime
    window: Window
    books: Books
    pending_batches: int
    failed_batches: int
    oldest_pending: float | None
    parts: list[state.Part]
    series: Series
    p50: float | None
    p99: float | None
    topics: list[Total]
    sources: list[Total]
    differing: list[Total]

    @property
    def share(self) -> float | None:
        """The share of duplicates in all that was processed, 0 to 1."""
        processed = self.books.unique + self.books.duplicates
        return self.books.duplicates / processed if processed else None

    @property
    def late(self) -> bool:
        return self.oldest_pending is not None and self.oldest_pending > state.LATE_SECONDS

    @property
    def well(self) -> bool:
        return all(part.well for part in self.parts) and not self.late and not self.failed_batches


def snapshot(window: Window) -> Snapshot:
    """Reads the dashboard. Its cost depends on the number of topics, sources and minutes, never of events."""
    now = timezone.now()
    kept = books()
    open_batches = dict(Batch.objects.filter(processed_at=None).order_by().values_list("status").annotate(Count("pk")))
    waited = _delays(_first_bar(window, now), window)
    of_all: dict[int, int] = defaultdict(int)
    for counts in waited.values():
        for step, events in counts.items():
            of_all[step] += events
    return Snapshot(
        at=now,
        window=window,
        books=kept,
        pending_batches=open_batches.get(Batch.Status.PENDING, 0),
        failed_batches=open_batches.get(Batch.Status.FAILED, 0),
        oldest_pending=state.oldest_pending_seconds(),
        parts=[state.database(), _broker(), state.workers(), state.beat()],
        series=_series(window, now, waited),
        p50=_seconds(of_all, 0.5),
        p99=_seconds(of_all, 0.99),
        topics=_top_topics(kept, now),
        sources=_top_sources("duplicates"),
        differing=_top_sources("differing"),
    )


def sparks(topics: Iterable[str], now: datetime) -> dict[str, list[int]]:
    """Events of each topic in each of the last SPARK_MINUTES minutes, the running one last."""
    first = _floor(now, 1) - timedelta(minutes=SPARK_MINUTES - 1)
    found: dict[str, list[int]] = {topic: [0] * SPARK_MINUTES for topic in topics}
    rows = TopicMinute.objects.filter(minute__gte=first, topic__in=list(found))
    for topic, minute, unique, duplicates in rows.values_list("topic", "minute", "unique", "duplicates"):
        index = _minutes_between(first, minute)
        # A clock that was set back leaves minutes in the future.
        if index < SPARK_MINUTES:
            found[topic][index] = unique + duplicates
    return found


def _series(window: Window, now: datetime, waited: Mapping[int, Mapping[int, int]]) -> Series:
    first = _first_bar(window, now)
    bars = window.minutes // window.step
    unique, duplicates = [0] * bars, [0] * bars
    rows = Minute.objects.filter(minute__gte=first).values_list("minute", "unique", "duplicates")
    for minute, new, dropped in rows:
        bar = _minutes_between(first, minute) // window.step
        if bar < bars:
            unique[bar] += new
            duplicates[bar] += dropped
    # The last bar is not over: what it has is divided by the minutes that have begun.
    minutes = [window.step] * (bars - 1) + [_minutes_between(first, now) % window.step + 1]
    return Series(
        times=[first + timedelta(minutes=window.step * bar) for bar in range(bars)],
        unique=[round(count / length, 1) for count, length in zip(unique, minutes, strict=True)],
        duplicates=[round(count / length, 1) for count, length in zip(duplicates, minutes, strict=True)],
        share=[
            dropped / (new + dropped) if new + dropped else None
            for new, dropped in zip(unique, duplicates, strict=True)
        ],
        p50=[_seconds(waited.get(bar, {}), 0.5) for bar in range(bars)],
        p99=[_seconds(waited.get(bar, {}), 0.99) for bar in range(bars)],
    )


def _delays(first: datetime, window: Window) -> dict[int, dict[int, int]]:
    """Events by bar and by how long they waited."""
    found: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    rows = Delay.objects.filter(minute__gte=first).values_list("minute", "milliseconds", "events")
    for minute, milliseconds, events in rows:
        found[_minutes_between(first, minute) // window.step][milliseconds] += events
    return found


def _seconds(counts: Mapping[int, int], share: float) -> float | None:
    milliseconds = delays.percentile(counts, share)
    return None if milliseconds is None else milliseconds / 1000


def _top_topics(kept: Books, now: datetime) -> list[Total]:
    totals = [Total(name, topic.unique, topic.duplicates) for name, topic in kept.topics.items()]
    totals = sorted(totals, key=lambda total: -total.received)[:TOP]
    lines = sparks([total.name for total in totals], now)
    for total in totals:
        total.spark = lines[total.name]
    return totals


def _top_sources(by: str) -> list[Total]:
    # No index: it would cost every drain, and this reads one narrow row for each source.
    rows = SourceTotal.objects.filter(**{f"{by}__gt": 0}).order_by(f"-{by}", "source")[:TOP]
    return [Total(row.source, row.unique, row.duplicates, row.differing) for row in rows]


def _first_bar(window: Window, now: datetime) -> datetime:
    return _floor(now, window.step) - timedelta(minutes=window.minutes - window.step)


def _floor(moment: datetime, minutes: int) -> datetime:
    return moment.replace(minute=moment.minute // minutes * minutes, second=0, microsecond=0)


def _minutes_between(earlier: datetime, later: datetime) -> int:
    return int((later - earlier).total_seconds() // 60)


class _BrokerAsked:
    at = float("-inf")
    answer: state.Part | None = None


_asked = _BrokerAsked()


def _broker() -> state.Part:
    if _asked.answer is None or time.monotonic() - _asked.at > BROKER_KNOWN_SECONDS:
        _asked.answer = state.broker()
        _asked.at = time.monotonic()
    return _asked.answer
