"""Copies an installation from SQLite into PostgreSQL: every row with its number, in slices, so that it can go on.

What an earlier run has copied of the large tables is compared row by row: it must be what the source holds now, or the
target is refused. The small tables, API keys, counters and accounts among them, are copied whole in one transaction at
the end, so a key that was revoked since an earlier run is revoked. Nothing may write meanwhile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

from django.apps import apps
from django.contrib.sessions.models import Session
from django.db import connections, models, transaction
from django.db.models import Max

from events.models import Alert, ApiKey, Batch, Duplicate, Event, Heartbeat, PayloadIndex

#: Copied in slices, and gone on with; each behind those that it refers to.
LARGE: tuple[type[models.Model], ...] = (Batch, Event, Duplicate)
#: Who is there and who is logged in: both begin anew. Indexes of payloads do not come with their rows.
LEFT_OUT: tuple[type[models.Model], ...] = (Alert, Heartbeat, PayloadIndex, Session)
#: Rows of a transaction; bodies of pending batches may have ten megabytes each, and one row is in memory at a time.
SLICE_ROWS = 5_000
#: Rows that SQLite hands over at a time.
FETCH_ROWS = 100


class NotOurs(Exception):
    """The target holds rows that the source does not, or no longer."""


class Changed(Exception):
    """The source was written to while it was copied."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How many rows of a table are there, of how many."""

    table: str
    rows: int
    of: int


def transfer(source: str, target: str) -> Iterator[Progress]:
    """Copies everything, or what is left to be copied. Each slice is committed when it is reported; stop at any time.

    Args:
        source, target: names of the database connections. The target's tables are up to date.

    Raises:
        NotOurs: the target holds something else; nothing was changed.
        Changed: the source was written to meanwhile.
        django.db.DatabaseError: a database is away or full.
    """
    before = _version(source)
    _copy_missing_keys(source, target)
    for model in LARGE:
        _refuse_strangers(model, source, target)
    for model in LARGE:
        yield from _copy_large(model, source, target)
    small = [model for model in _in_order() if model not in (*LARGE, *LEFT_OUT)]
    with transaction.atomic(using=target):
        # Not by the ORM, which would refuse to delete keys that batches refer to: all of them come back at once, and
        # foreign keys are checked at the end of the transaction.
        with connections[target].cursor() as cursor:
            for model in small:
                table = connections[target].ops.quote_name(model._meta.db_table)
                cursor.execute(f"DELETE FROM {table}")  # noqa: S608 (a name of ours)
        for model in small:
            yield _copy_small(model, source, target)
        _set_sequences([*LARGE, *small], source, target)
    if _version(source) != before:
        raise Changed


def _version(using: str) -> int:
    """Changes when another connection has written (https://sqlite.org/pragma.html#pragma_data_version)."""
    with connections[using].cursor() as cursor:
        cursor.execute("PRAGMA data_version")
        return int(cursor.fetchone()[0])


def _copy_missing_keys(source: str, target: str) -> None:
    """Copies the API keys that batches refer to, as far as they are not there; what they open is copied at the end."""
    here, there = ({key.pk: key for key in ApiKey.objects.using(using)} for using in (source, target))
    if any(pk not in here or here[pk].hashed_key != key.hashed_key for pk, key in there.items()):
        raise NotOurs(ApiKey._meta.db_table)
    ApiKey.objects.using(target).bulk_create(key for pk, key in here.items() if pk not in there)


def _refuse_strangers(model: type[models.Model], source: str, target: str) -> None:
    """Reads everything that is there: a row may have been changed or deleted in the source since it was copied."""
    there = model._base_manager.using(target)
    last = there.aggregate(last=Max("pk"))["last"]
    if last is None:
        return
    here = model._base_manager.using(source).filter(pk__lte=last)
    rows = (side.order_by("pk").values_list().iterator(FETCH_ROWS) for side in (here, there))
    if any(row != copied for row, copied in zip_longest(*rows)):
        raise NotOurs(model._meta.db_table)


def _copy_large(model: type[models.Model], source: str, target: str) -> Iterator[Progress]:
    rows = model._base_manager.using(source)
    there = model._base_manager.using(target)
    of, done = rows.count(), there.count()
    last = there.aggregate(last=Max("pk"))["last"] or 0
    fields = model._meta.concrete_fields
    pk = next(place for place, field in enumerate(fields) if field.primary_key)
    quote = connections[target].ops.quote_name
    columns = ", ".join(quote(str(field.column)) for field in fields)
    prepared = [partial(field.get_db_prep_save, connection=connections[target]) for field in fields]
    while done < of:
        ahead = rows.filter(pk__gt=last).order_by("pk").values_list(*(field.attname for field in fields))
        with transaction.atomic(using=target), connections[target].cursor() as cursor:
            copied = 0
            with cursor.copy(f"COPY {quote(model._meta.db_table)} ({columns}) FROM STDIN") as copy:
                for row in ahead[:SLICE_ROWS].iterator(FETCH_ROWS):
                    copy.write_row([prepare(value) for prepare, value in zip(prepared, row, strict=True)])
                    last = row[pk]
                    copied += 1
        done += copied
        if not copied:
            raise Changed
        yield Progress(model._meta.db_table, done, of)
    yield Progress(model._meta.db_table, done, of)


def _in_order() -> list[type[models.Model]]:
    """Every table, each behind those that it refers to."""
    left = [model for model in apps.get_models(include_auto_created=True) if not model._meta.proxy]
    ordered: list[type[models.Model]] = []
    while left:
        for model in left:
            needs = {field.related_model for field in model._meta.concrete_fields if field.is_relation}
            if not needs & set(left) - {model}:
                ordered.append(model)
                left.remove(model)
                break
        else:
            raise AssertionError("tables refer to each other in a circle")
    return ordered


def _copy_small(model: type[models.Model], source: str, target: str) -> Progress:
    rows: list[Any] = list(model._base_manager.using(source).order_by("pk"))
    model._base_manager.using(target).bulk_create(rows, batch_size=1_000)
    return Progress(model._meta.db_table, len(rows), len(rows))


def _set_sequences(copied: list[type[models.Model]], source: str, target: str) -> None:
    """Numbers go on where SQLite's were, also where retention has taken the rows that had the last ones.

    A number that is given out twice would make an old event look as if it came with a new batch.
    """
    with connections[source].cursor() as cursor:
        cursor.execute("SELECT name, seq FROM sqlite_sequence")
        given = dict(cursor.fetchall())
    quote = connections[target].ops.quote_name
    with connections[target].cursor() as cursor:
        for model in copied:
            pk = model._meta.pk
            if isinstance(pk, models.AutoField | models.BigAutoField) and (last := given.get(model._meta.db_table)):
                table = quote(model._meta.db_table)
                cursor.execute("SELECT setval(pg_get_serial_sequence(%s, %s), %s)", [table, pk.column, last])
