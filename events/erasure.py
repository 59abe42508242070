"""Erases what an event says, for the law: its payload goes wherever it is kept, its key stays.

So a retry of the event is still a duplicate, and the books do not change. Who erased it and when is kept for good.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
from django.db import connection
from django.utils import timezone
from msgspec import Raw

from events import wire
from events.models import Batch, Duplicate, Erasure, Event
from events.origin import request_id
from events.turn import writing

log = logging.getLogger(__name__)

#: What an erased event has for a payload.
ERASED = "{}"


@dataclass(slots=True)
class Erased:
    """What was done.

    Attributes:
        stored: whether the event is stored.
        duplicates: dropped duplicates of it whose payload was kept.
        batches: open batches (pending, dead letters, discarded) that had it.
        unreadable: numbers of open batches that cannot be read and may have it.
    """

    stored: bool = False
    duplicates: int = 0
    batches: int = 0
    unreadable: list[int] = field(default_factory=list)

    @property
    def found(self) -> bool:
        return self.stored or bool(self.batches)


def erase(topic: str, event_id: str, *, by: str) -> Erased:
    """Erases the payload of an event: of the stored one, of its dropped duplicates, and of batches that wait.

    To be called again after an interruption, or whenever: it does what is left to do.

    Args:
        topic, event_id: the key of the event.
        by: who erases it, for people.

    Returns:
        What was found. Nothing is noted of a key that nobody knows.

    Raises:
        django.db.DatabaseError: the database is away; what was done so far stays done.
    """
    done = Erased(stored=Event.objects.filter(topic=topic, event_id=event_id).exists())
    waiting = list(_open_batches(event_id))
    if not done.stored and not waiting:
        return done
    # First of all: a drain that begins now keeps no payload of a duplicate of it.
    with writing():
        Erasure.objects.get_or_create(
            topic=topic,
            event_id=event_id,
            defaults={"erased_at": timezone.now(), "erased_by": by, "request_id": request_id.get()},
        )
    # Then the batches, each as soon as no drain holds it any more; and only then what those drains have stored.
    for pk in waiting:
        _erase_in_batch(pk, topic, event_id, done)
    with writing():
        _overwrite_what_is_deleted()
        # One that has expired has no payload, and stays without one.
        stored = Event.objects.filter(topic=topic, event_id=event_id)
        stored.exclude(payload="").update(payload=ERASED)
        done.stored = stored.exists()
        kept = Duplicate.objects.filter(topic=topic, event_id=event_id).exclude(payload="")
        done.duplicates = kept.update(payload="")
    _empty_the_log()
    log.info("erased", extra={"by": by, "duplicates": done.duplicates, "batches": done.batches})
    return done


def _open_batches(event_id: str) -> Iterator[int]:
    """The batches that are not processed and in whose body the event id stands. One body is in memory at a time."""
    needle = msgspec.json.encode(event_id)
    rows = Batch.objects.filter(processed_at=None).order_by("pk").values_list("pk", flat=True)
    for pk in list(rows):
        body = Batch.objects.filter(pk=pk, processed_at=None).values_list("body", flat=True).first()
        if body and needle in bytes(body):
            yield pk


def _erase_in_batch(pk: int, topic: str, event_id: str, done: Erased) -> None:
    with writing():
        _overwrite_what_is_deleted()
        batch = Batch.objects.select_for_update().filter(pk=pk, processed_at=None).first()
        if batch is None:
            return
        try:
            events = wire.decode_kept(bytes(batch.body or b""))
        except ValueError:
            done.unreadable.append(pk)
            return
        found = [event for event in events if (event.topic, event.event_id) == (topic, event_id)]
        for event in found:
            event.payload = Raw(ERASED.encode())
        if found:
            # A drain that read the body before sees by the size that it has changed: store._still_due().
            batch.body = msgspec.json.encode(events)
            batch.size = len(batch.body)
            batch.save(update_fields=["body", "size"])
            done.batches += 1


def _overwrite_what_is_deleted() -> None:
    """SQLite marks what is deleted as free and leaves it in the file, unless told otherwise."""
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA secure_delete = ON")


def _empty_the_log() -> None:
    """SQLite's write-ahead log holds pages as they were before. A reader may keep it from being emptied for a while."""
    if connection.vendor == "sqlite" and not connection.in_atomic_block:
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            [(busy, _, _)] = cursor.fetchall()
        if busy:
            log.warning("SQLite's write-ahead log is being read, and holds the payload until it is written anew")
