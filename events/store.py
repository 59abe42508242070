"""Writes chunks of pending batches: each event once, every duplicate counted, each chunk in one transaction."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import msgspec
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection
from django.db.models import BigIntegerField, Case, Func, QuerySet, When
from django.utils import timezone
from msgspec import Raw

from events import delays, horizon, in_flight, inbox, metrics, tracing, wire
from events.erasure import ERASED
from events.models import Batch, Delay, Duplicate, Erasure, Event, Minute, SourceTotal, TopicMinute, TopicTotal
from events.turn import writing

log = logging.getLogger(__name__)

#: What one transaction holds at most, so that SQLite's one writer lock is held for tens of milliseconds, not seconds.
CHUNK_BATCHES = 500
CHUNK_EVENTS = 4_000
CHUNK_BYTES = 8 * 1024 * 1024
#: Ids looked up in one statement at most; SQLite takes 32,766 parameters, and one publish may have more events.
LOOK_UP_IDS = 10_000
#: Stored payloads fetched at a time, to be compared with those of duplicates.
PAYLOADS_FETCHED = 100
#: Bytes up to which payloads are compared as JSON; beyond, they are the same when their bytes are. As Python objects,
#: JSON may take 25 times its bytes.
COMPARED_BYTES = 64 * 1024
#: Seconds a drain lasts at most: limits, shutdown and Flower see short tasks.
DRAIN_SECONDS = 5.0
#: Seconds in which pending batches may gather after a chunk that was not full. Without it the drain and the publishes
#: fight for SQLite's writer lock, and its waiters sleep up to 100 ms: 635 single posts a second instead of 950.
GATHER_SECONDS = 0.02

#: Why an attempt failed of which nobody could tell any more.
WORKER_DIED = "The worker died while storing it."

#: What an event is stored as; its id comes by itself.
EVENT_COLUMNS = ("topic", "event_id", "source", "timestamp", "payload", "received_at", "batch")

#: Requests that the line of a chunk names at most, at debug level, and batches that the line of a death names.
REQUESTS_NAMED = BATCHES_NAMED = 20

#: The database's own troubles: no batch is to blame, nothing is counted as an attempt, the next ring tries again.
_TROUBLE_OF_THE_DATABASE = (OperationalError, InterfaceError)

Key = tuple[str, str]


class ByteLength(Func):
    """The bytes of a text in UTF-8, which PostgreSQL, and SQLite since 3.43, know without reading it."""

    function = "OCTET_LENGTH"
    output_field = BigIntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **options: Any) -> Any:
        if connection.Database.sqlite_version_info < (3, 43):
            options |= {"template": "LENGTH(CAST(%(expressions)s AS BLOB))"}
        return self.as_sql(compiler, connection, **options)


@dataclass(slots=True)
class Stored:
    """What was done with how much: numbers of batches and of events."""

    batches: int = 0
    events: int = 0
    unique: int = 0
    duplicates: int = 0
    failed_batches: int = 0

    def __iadd__(self, other: "Stored") -> "Stored":
        self.batches += other.batches
        self.events += other.events
        self.unique += other.unique
        self.duplicates += other.duplicates
        self.failed_batches += other.failed_batches
        return self

    def __str__(self) -> str:
        if not self.batches:
            return "nothing was due"
        events = f"{self.unique:,} new, {self.duplicates:,} dropped"
        return f"{self.failed_batches} of {self.batches} batches failed; {events}" if self.failed_batches else events


@dataclass(slots=True)
class Pending:
    """A batch that is being stored.

    Attributes:
        size: bytes of its body, when it was read.
        due_at: when it was accepted, or replayed, or when the pause after its last failed attempt was over.
    """

    pk: int
    accepted_at: datetime
    due_at: datetime
    size: int
    body: bytes
    unique: int = 0
    duplicates: int = 0

    @property
    def received(self) -> int:
        return self.unique + self.duplicates


@dataclass(slots=True)
class Arrival:
    """One event of a batch on its way into the books."""

    key: Key
    event: wire.Kept
    batch: Pending
    new: bool = False
    differs: bool = False


@dataclass(slots=True)
class Chunk:
    """What one transaction stores.

    Attributes:
        first: the first arrival of each key, which is the one that is stored if none is yet.
        rows: those, as the database takes them.
    """

    batches: list[Pending]
    arrivals: list[Arrival]
    first: dict[Key, Arrival]
    rows: Sequence[Sequence[Any]]


def drain(
    *, seconds: float = DRAIN_SECONDS, at_least: float = 0.0, when_full: Callable[[], object] | None = None
) -> tuple[Stored, bool]:
    """Stores chunk after chunk until nothing is pending or the time is over.

    Args:
        seconds: how long to go on at most; a chunk that was begun is finished.
        at_least: seconds to go on looking although nothing is pending.
        when_full: called after a chunk that was full, where other drains can help: on databases with row locks.

    Returns:
        What was stored, and whether something may be left.

    Raises:
        django.db.OperationalError: the database is away, locked or full; what is pending stays so.
    """
    began = time.monotonic()
    total = _succeed_the_dead()
    while time.monotonic() < began + seconds:
        chunk, full = store_chunk()
        total += chunk
        if not (chunk.batches or full) and time.monotonic() >= began + at_least:
            return total, False
        if not full:
            time.sleep(GATHER_SECONDS)
        elif when_full and connection.features.has_select_for_update_skip_locked:
            when_full()
    return total, True


def _succeed_the_dead() -> Stored:
    """Stores what processes were storing that have died, batch by batch, so that the one that kills is found.

    A death is nobody's attempt: processes are killed for all sorts of reasons. It counts against a batch that was
    being stored by itself, because it had been there at a death before.
    """
    total = Stored()
    for left in in_flight.left_by_the_dead():
        if left.batches:
            log.warning("a process died while it was storing", extra={"batches": left.batches[:BATCHES_NAMED]})
        for pk in left.batches:
            if left.alone:
                _put_off(pk, WORKER_DIED)
            else:
                total += _store_alone(pk)
    return total


def store_chunk() -> tuple[Stored, bool]:
    """Stores the oldest pending batches that are due, as many as one transaction should hold.

    A batch that cannot be stored never stands in the way of the others: each is then stored alone, and it is put off.

    Returns:
        What was stored, and whether more is likely to be pending: the chunk was full, or another drain had part of it.

    Raises:
        django.db.OperationalError: the database is away, locked or full; nothing of the chunk is stored.
    """
    batches: list[Pending] = []
    began = time.perf_counter()
    try:
        if connection.features.has_select_for_update_skip_locked:
            with writing():
                batches, full = _claim()
                stored = _store(_read(batches))
        else:
            # Publishes wait for the one writer: what needs no lock is done before it is taken. It is half of the work.
            batches, full = _claim()
            if not batches:
                return Stored(), False
            chunk = _read(batches)
            with writing():
                left = _still_due(chunk)
                stored = _store(left)
            batches, full = left.batches, full or left is not chunk
    except _TROUBLE_OF_THE_DATABASE:
        metrics.ERROR_OF_DATABASE.inc()
        raise
    except Exception:
        if not batches:
            raise
        metrics.ERROR_OF_CHUNK.inc()
        log.exception("a chunk of %d batches failed; storing them one by one", len(batches))
        stored = Stored()
        for batch in batches:
            stored += _store_alone(batch.pk)
        return stored, full
    finally:
        in_flight.note([])
    if batches:
        _tell(batches, stored, time.perf_counter() - began)
    return stored, full


def _tell(batches: Sequence[Pending], stored: Stored, seconds: float) -> None:
    """Tells those who watch that a chunk is on disk."""
    metrics.CHUNK_SECONDS.observe(seconds)
    metrics.CHUNK_EVENTS.observe(stored.events)
    loud = log.isEnabledFor(logging.DEBUG)
    if not (tracing.ON or loud):
        return
    rows = Batch.objects.filter(pk__in=[batch.pk for batch in batches]).values_list("traceparent", "request_id")
    traceparents, requests = zip(*rows, strict=True) if rows else ((), ())
    if tracing.ON:
        tracing.stored(
            traceparents,
            seconds=seconds,
            batches=stored.batches,
            events=stored.events,
            unique=stored.unique,
            duplicates=stored.duplicates,
        )
    log.debug("chunk stored", extra={**asdict(stored), "request_ids": requests[:REQUESTS_NAMED]})


def _store_alone(pk: int) -> Stored:
    """Stores one batch that is suspected, if it is still due."""
    with in_flight.alone(pk):
        try:
            with writing():
                # Claimed again: another worker may have stored it since.
                return _store(_read(_claimed(inbox.due().filter(pk=pk))))
        except _TROUBLE_OF_THE_DATABASE:
            raise
        except Exception as error:
            _put_off(pk, f"{type(error).__name__}: {error}")
            return Stored(batches=1, failed_batches=1)


def _claim() -> tuple[list[Pending], bool]:
    """The oldest batches that are due, and whether the limits of a chunk cut them off.

    On databases with row locks they are locked for this transaction.
    """
    due = inbox.due().order_by("pk")
    # Sizes first, from the index alone, bodies later: five hundred batches may weigh gigabytes.
    sizes = due.values_list("pk", "received", "size", "attempts", named=True)
    chosen, full = _fitting(sizes[: CHUNK_BATCHES + 1])
    if chosen and connection.features.has_select_for_update_skip_locked:
        # Other drains may hold these. As many are locked as are likely to fit: what is locked and not stored keeps
        # waiting.
        wanted = len(chosen)
        chosen, cut = _fitting(sizes.select_for_update(skip_locked=True)[:wanted])
        full = cut or (full and len(chosen) == wanted)
    if not chosen:
        return [], False
    in_flight.note([batch.pk for batch in chosen], alone=chosen[0].attempts > 0)
    return _claimed(due.filter(pk__in=[batch.pk for batch in chosen])), full


def _fitting(sizes: Iterable[Any]) -> tuple[list[Any], bool]:
    """The first of these batches that one transaction should hold, and whether more came.

    One that failed before is by itself: it stands in nobody's way, and if it kills the worker, it is known.
    """
    fitting: list[Any] = []
    events = size = 0
    for batch in sizes:
        events += batch.received
        size += batch.size
        if fitting and (
            len(fitting) == CHUNK_BATCHES
            or events > CHUNK_EVENTS
            or size > CHUNK_BYTES
            or batch.attempts
            or fitting[0].attempts
        ):
            return fitting, True
        fitting.append(batch)
    return fitting, False


def _claimed(batches: QuerySet[Batch]) -> list[Pending]:
    skips_locked = connection.features.has_select_for_update_skip_locked
    rows = batches.order_by("pk").select_for_update(skip_locked=skips_locked)
    columns = rows.values_list("pk", "accepted_at", "next_attempt_at", "size", "body")
    return [Pending(pk, accepted, due, size, bytes(body or b"")) for pk, accepted, due, size, body in columns]


def _read(batches: list[Pending]) -> Chunk:
    """All of a chunk that can be done without the database."""
    arrivals = [
        Arrival((event.topic, event.event_id), event, batch)
        for batch in batches
        for event in wire.decode_kept(batch.body)
    ]
    first: dict[Key, Arrival] = {}
    for arrival in arrivals:
        first.setdefault(arrival.key, arrival)
    return Chunk(batches, arrivals, first, _rows(first.values()))


def _rows(arrivals: Iterable[Arrival]) -> Sequence[Sequence[Any]]:
    """Events as the database takes them."""
    rows = [
        (
            event.topic,
            event.event_id,
            event.source,
            event.timestamp or arrival.batch.accepted_at,
            str(event.payload, "utf-8"),
            arrival.batch.accepted_at,
            arrival.batch.pk,
        )
        for arrival in arrivals
        for event in (arrival.event,)
    ]
    return Event.objects.prepare(EVENT_COLUMNS, rows)


def _still_due(chunk: Chunk) -> Chunk:
    """The chunk, or what is left of it where another drain was faster, or a payload was erased meanwhile."""
    batches = chunk.batches
    due = inbox.due().filter(pk__gte=batches[0].pk, pk__lte=batches[-1].pk)
    sizes = dict(due.values_list("pk", "size"))
    unchanged = [batch for batch in batches if sizes.get(batch.pk) == batch.size]
    # A body that changed is left for the next chunk, which reads it anew.
    return chunk if len(unchanged) == len(batches) else _read(unchanged)


def _store(chunk: Chunk) -> Stored:
    """Stores what the batches hold. To be called in a transaction that holds them."""
    batches, arrivals = chunk.batches, chunk.arrivals
    if not batches:
        return Stored()
    _forget_erased(chunk)
    _insert(chunk)
    # Payloads as text, which the log of duplicates needs room for.
    chunk.rows = ()
    _log_duplicates([arrival for arrival in arrivals if not arrival.new])
    tallies = _tally(arrivals)
    _mark_processed(batches)
    # Last: every drain adds to these rows, and they stay locked until the commit.
    _count(batches, tallies)
    unique = sum(batch.unique for batch in batches)
    return Stored(len(batches), len(arrivals), unique, len(arrivals) - unique)


def _forget_erased(chunk: Chunk) -> None:
    """Takes the payloads of erased keys: nothing that comes under one is kept, also where retention took the event."""
    if not Erasure.objects.exists():
        return
    erased = _erased(list(chunk.first))
    for arrival in chunk.arrivals if erased else ():
        if arrival.key in erased:
            arrival.event.payload = Raw(ERASED.encode())
    if erased:
        chunk.rows = ()
        chunk.rows = _rows(chunk.first.values())


def _insert(chunk: Chunk) -> None:
    """Stores each key once, first come first stored, and marks the arrivals that were new."""
    horizon.hold()
    if Event.objects.insert_new(EVENT_COLUMNS, chunk.rows) == len(chunk.rows):
        for arrival in chunk.first.values():
            arrival.new = True
        return
    # A batch had no rows before this transaction, so those that carry its id now are the new ones.
    claimed = [batch.pk for batch in chunk.batches]
    for key in Event.objects.filter(batch__in=claimed).values_list("topic", "event_id"):
        chunk.first[key].new = True


def _log_duplicates(dropped: Sequence[Arrival]) -> None:
    """Writes down what was dropped, and whether it said something else than the event that is stored."""
    if not dropped or not settings.DUPLICATE_LOG_DAYS:
        return
    _compare(dropped)
    rows = []
    for arrival in dropped:
        event, batch = arrival.event, arrival.batch
        kept = str(event.payload, "utf-8") if arrival.differs else ""
        rows.append((*arrival.key, event.source, batch.accepted_at, batch.pk, arrival.differs, kept))
    columns = ("topic", "event_id", "source", "received_at", "batch", "payload_differs", "payload")
    Duplicate.objects.insert_new(columns, rows)


def _erased(keys: Sequence[Key]) -> set[Key]:
    """Which of these keys were erased (erasure.py)."""
    found: set[Key] = set()
    for begin in range(0, len(keys), LOOK_UP_IDS):
        ids = {event_id for _, event_id in keys[begin : begin + LOOK_UP_IDS]}
        found.update(Erasure.objects.filter(event_id__in=ids).values_list("topic", "event_id"))
    return found


def _compare(dropped: Sequence[Arrival]) -> None:
    """Marks the arrivals that differ from the stored event. Few and small stored payloads are in memory at a time."""
    arrivals: dict[str, dict[str, list[Arrival]]] = defaultdict(lambda: defaultdict(list))
    for arrival in dropped:
        topic, event_id = arrival.key
        arrivals[topic][event_id].append(arrival)
    for topic, of_topic in arrivals.items():
        left = iter(of_topic)
        while some := list(islice(left, LOOK_UP_IDS)):
            stored = Event.objects.filter(topic=topic, event_id__in=some).annotate(
                size=ByteLength("payload"), small=Case(When(size__lte=COMPARED_BYTES, then="payload"))
            )
            large: list[tuple[str, int]] = []
            for event_id, size, payload in stored.values_list("event_id", "size", "small").iterator(PAYLOADS_FETCHED):
                if payload is None:
                    large.append((event_id, size))
                # An empty one has expired, and what could be compared is gone.
                for arrival in of_topic[event_id] if payload else ():
                    arrival.differs = _differ(arrival.event.payload, payload)
            for event_id, size in large:
                _compare_large(topic, event_id, size, of_topic[event_id])


def _compare_large(topic: str, event_id: str, size: int, arrivals: Sequence[Arrival]) -> None:
    """Compares with a stored payload that is beyond COMPARED_BYTES, which is fetched only for one of its length."""
    for arrival in arrivals:
        arrival.differs = len(arrival.event.payload) != size
    if not all(arrival.differs for arrival in arrivals):
        stored = Event.objects.filter(topic=topic, event_id=event_id).values_list("payload", flat=True)
        # Retention may have taken it meanwhile.
        if payload := stored.first():
            for arrival in arrivals:
                arrival.differs = _differ(arrival.event.payload, payload)


def _differ(one: Raw, other: str) -> bool:
    """Whether two JSON texts say different things; spaces and the order of keys say nothing (RFC 8259 section 4)."""
    text = str(one, "utf-8")
    if text == other or len(one) > COMPARED_BYTES:
        return text != other
    # Compared as text again: to Python, true equals 1.
    return _canonical(text) != _canonical(other)


def _canonical(text: str) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(text), order="sorted")


@dataclass(slots=True)
class Tally:
    """What came in under one name, and when."""

    first_seen: datetime
    last_seen: datetime
    unique: int = 0
    duplicates: int = 0
    differing: int = 0

    def add(self, other: "Tally") -> None:
        self.first_seen = min(self.first_seen, other.first_seen)
        self.last_seen = max(self.last_seen, other.last_seen)
        self.unique += other.unique
        self.duplicates += other.duplicates
        self.differing += other.differing


def _tally(arrivals: Sequence[Arrival]) -> dict[tuple[str, str, int], Tally]:
    """Counts by batch, and by topic and source of each."""
    tallies: dict[tuple[str, str, int], Tally] = {}
    for arrival in arrivals:
        event, batch = arrival.event, arrival.batch
        at = event.topic, event.source, batch.pk
        tally = tallies.get(at)
        if tally is None:
            tally = tallies[at] = Tally(batch.accepted_at, batch.accepted_at)
        if arrival.new:
            batch.unique += 1
            tally.unique += 1
        else:
            batch.duplicates += 1
            tally.duplicates += 1
            tally.differing += arrival.differs
    return tallies


def _count(batches: Sequence[Pending], tallies: dict[tuple[str, str, int], Tally]) -> None:
    """Adds to the books by topic, topic and minute, source, minute, and delay, in this order, as every drain does."""
    topics: dict[str, Tally] = {}
    sources: dict[str, Tally] = {}
    minutes: dict[datetime, Tally] = {}
    topic_minutes: dict[tuple[datetime, str], Tally] = {}
    for (topic, source, _), tally in tallies.items():
        minute = tally.first_seen.replace(second=0, microsecond=0)
        _fold(topics, topic, tally)
        _fold(sources, source, tally)
        _fold(minutes, minute, tally)
        _fold(topic_minutes, (minute, topic), tally)

    counters = ["unique", "duplicates"]
    TopicTotal.objects.add(
        ((topic, of.unique, of.duplicates, of.last_seen, of.first_seen) for topic, of in topics.items()),
        key=["topic"],
        counters=counters,
        latest="last_seen",
        once="first_seen",
    )
    TopicMinute.objects.add(
        ((*at, of.unique, of.duplicates) for at, of in topic_minutes.items()),
        key=["minute", "topic"],
        counters=counters,
    )
    SourceTotal.objects.add(
        ((source, of.unique, of.duplicates, of.differing, of.last_seen) for source, of in sources.items()),
        key=["source"],
        counters=[*counters, "differing"],
        latest="last_seen",
    )
    Minute.objects.add(
        ((minute, of.unique, of.duplicates) for minute, of in minutes.items()), key=["minute"], counters=counters
    )
    Delay.objects.add(_delays(batches), key=["minute", "milliseconds"], counters=["events"])


def _fold(tallies: dict[Any, Tally], name: Any, tally: Tally) -> None:
    if name in tallies:
        tallies[name].add(tally)
    else:
        tallies[name] = replace(tally)


def _delays(batches: Sequence[Pending]) -> list[tuple[datetime, int, int]]:
    """How long the events of the batches were due, by the minute in which they are stored."""
    now = timezone.now()
    minute = now.replace(second=0, microsecond=0)
    events: dict[int, int] = defaultdict(int)
    for batch in batches:
        events[delays.step((now - batch.due_at).total_seconds() * 1000)] += batch.received
    return [(minute, step, count) for step, count in events.items()]


def _mark_processed(batches: Sequence[Pending]) -> None:
    Batch.objects.update_each(
        ["unique", "duplicates", "id"],
        [(batch.unique, batch.duplicates, batch.pk) for batch in batches],
        status=Batch.Status.PROCESSED,
        processed_at=timezone.now(),
        body=None,
        error="",
    )


def _put_off(pk: int, error: str) -> None:
    """Counts a failed attempt: the batch is tried again after a growing pause, or becomes a dead letter."""
    metrics.ERROR_OF_BATCH.inc()
    with writing():
        batch = (
            inbox.pending()
            .filter(pk=pk)
            .select_for_update(skip_locked=connection.features.has_select_for_update_skip_locked)
            .first()
        )
        if batch is None:
            return
        batch.attempts += 1
        batch.error = error
        pause = min(inbox.FIRST_RETRY_SECONDS * 2 ** (batch.attempts - 1), inbox.LONGEST_RETRY_SECONDS)
        batch.next_attempt_at = timezone.now() + timedelta(seconds=pause)
        if batch.attempts >= settings.INBOX_MAX_ATTEMPTS:
            batch.status = Batch.Status.FAILED
            metrics.DEAD_LETTERS.inc()
            log.error(
                "batch %d is a dead letter after %d attempts: %s",
                pk,
                batch.attempts,
                batch.error,
                extra={"request_id": batch.request_id},
            )
        batch.save(update_fields=["attempts", "error", "next_attempt_at", "status"])
