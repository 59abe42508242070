"""API keys: who may publish or read, and which topics. Kept as hashes; a key itself is shown once, when it is made."""

import logging
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from hashlib import sha256

from django.db import DatabaseError
from django.db.models import F, Q, QuerySet, Value
from django.db.models.functions import Left
from django.db.models.lookups import Exact
from django.utils import timezone
from rest_framework_api_key.crypto import KeyGenerator

from events.models import ApiKey, Batch, TopicTotal
from events.turn import writing

log = logging.getLogger(__name__)

#: Seconds a process goes by what it knows of a key: the longest that a revoked key still works.
KNOWN_SECONDS = 5.0
#: Keys a process knows at a time. Unknown ones count too, so that somebody who guesses costs no memory.
KNOWN_KEYS = 1024
#: How exact "last used" is. SQLite has one writer, which must not be taken for every request.
LAST_USED_EVERY = timedelta(minutes=5)

# A salt and a slow hash would protect what people choose. These are 190 random bits (NIST SP 800-63B section 5.1.2.2).
_generator = KeyGenerator()


def create(
    name: str, *, may_publish: bool, may_read: bool, may_erase: bool = False, topics: Sequence[str] = ()
) -> tuple[ApiKey, str]:
    """Makes a key.

    Args:
        name: what it is for, for people.
        may_publish, may_read, may_erase: what it opens; at least one.
        topics: the beginnings of the topics it opens; none is every topic.

    Returns:
        The row, and the key itself, which nobody can see again.

    Raises:
        ValueError: it would open nothing, or everything by mistake.
    """
    if not (may_publish or may_read or may_erase):
        raise ValueError("A key that may neither publish, read nor erase opens nothing.")
    if "" in topics:
        raise ValueError("An empty beginning would open every topic: leave the topics out if that is what is meant.")
    key, prefix, hashed = _generator.generate()
    row = ApiKey(
        name=name,
        prefix=prefix,
        hashed_key=hashed,
        may_publish=may_publish,
        may_read=may_read,
        may_erase=may_erase,
        topics=list(topics),
        created_at=timezone.now(),
    )
    with writing():
        row.save(force_insert=True)
    return row, key


def revoke(prefixes: Sequence[str]) -> list[str]:
    """Closes keys for good; the last process notices KNOWN_SECONDS later.

    Returns:
        The prefixes of those that were open until now.
    """
    with writing():
        found = ApiKey.objects.filter(prefix__in=prefixes, revoked_at=None)
        revoked = list(found.values_list("prefix", flat=True))
        found.update(revoked_at=timezone.now())
    _known.forget()
    return revoked


def find(key: str) -> ApiKey | None:
    """The row of a key that is valid, or None. Asks the database once in KNOWN_SECONDS.

    Raises:
        django.db.DatabaseError: the database is away.
    """
    digest = sha256(key.encode(errors="surrogateescape")).digest()
    known = _known.get(digest)
    if known is not None:
        return known[0]
    row = _look_up(key)
    _known.put(digest, row)
    if row:
        _note_use(row)
    return row


def is_valid(row: ApiKey) -> bool:
    """Whether a key that was found some time ago has not been revoked since."""
    return ApiKey.objects.filter(pk=row.pk, revoked_at=None).exists()


def _look_up(key: str) -> ApiKey | None:
    prefix = key.partition(".")[0]
    if len(prefix) != _generator.prefix_length or not key.isascii() or not key.isprintable():
        return None
    row = ApiKey.objects.filter(prefix=prefix, revoked_at=None).first()
    return row if row and _generator.verify(key, row.hashed_key) else None


def _note_use(row: ApiKey) -> None:
    now = timezone.now()
    if row.last_used_at and now - row.last_used_at < LAST_USED_EVERY:
        return
    before = Q(last_used_at=None) | Q(last_used_at__lt=now - LAST_USED_EVERY)
    try:
        with writing():
            ApiKey.objects.filter(before, pk=row.pk).update(last_used_at=now)
        row.last_used_at = now
    except DatabaseError as error:
        # Nobody is kept out because a date could not be written.
        log.warning("the last use of API key %s could not be noted: %s", row.prefix, error)


class _Known:
    """What this process knows of keys, by their SHA-256, so that a dump of its memory has none of them."""

    def __init__(self) -> None:
        self._rows: dict[bytes, tuple[ApiKey | None, float]] = {}
        self._change = threading.Lock()

    def get(self, digest: bytes) -> tuple[ApiKey | None] | None:
        found = self._rows.get(digest)
        return (found[0],) if found and time.monotonic() < found[1] else None

    def put(self, digest: bytes, row: ApiKey | None) -> None:
        with self._change:
            if len(self._rows) >= KNOWN_KEYS:
                self._rows.clear()
            self._rows[digest] = row, time.monotonic() + KNOWN_SECONDS

    def forget(self) -> None:
        with self._change:
            self._rows.clear()


_known = _Known()


# --- What a key that is bound to topics may see -----------------------------------------------------------------------


def visible_topics(key: ApiKey) -> QuerySet[TopicTotal]:
    """The topics in the books that a bound key opens. Capital and small letters differ, as they do for topics."""
    # Not startswith: SQLite's LIKE takes Orders. for orders.
    begins = [Q(Exact(Left(F("topic"), len(beginning)), Value(beginning))) for beginning in key.topics]
    return TopicTotal.objects.filter(_any(begins))


def _any(conditions: Sequence[Q]) -> Q:
    result = Q()
    for condition in conditions:
        result |= condition
    return result


def visible_publishers(key: ApiKey) -> list[int]:
    """The keys all of whose publishes a bound key may see: those that could only publish what it opens."""
    others = ApiKey.objects.filter(may_publish=True)
    return [other.pk for other in others if _within(other, key)]


def may_see_receipt(key: ApiKey, batch: Batch) -> bool:
    """Whether a key may see the receipt of a publish: its own always, others' as far as it may read their topics."""
    if batch.api_key_id == key.pk:
        return True
    if not key.may_read:
        return False
    return not key.topics or (batch.api_key is not None and _within(batch.api_key, key))


def _within(other: ApiKey, key: ApiKey) -> bool:
    return bool(other.topics) and all(key.opens(beginning) for beginning in other.topics)
