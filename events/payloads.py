"""Reads payloads of events, whose sizes nobody knows beforehand, without ever holding more than was asked for."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
from django.db import connection

from events.memory import drop_connection_after, one_large_at_a_time
from events.models import Event

# Payloads are read as bytes: a single character beyond ASCII makes a text of Python two or four times as large.

# Row by row in the order of the ids: SQLite does not reorder a CROSS JOIN (sqlite.org/optoverview.html). A fifth
# of the time of iterator(chunk_size=1).
_ROW_BY_ROW = f"""
    SELECT event.id, CAST(event.payload AS BLOB)
    FROM json_each(%s) AS wanted CROSS JOIN "{Event._meta.db_table}" AS event ON event.id = wanted.value
"""  # noqa: S608 (a constant)

_SIZES = f'SELECT id, octet_length(payload) FROM "{Event._meta.db_table}" WHERE id = ANY(%s)'  # noqa: S608 (a constant)
_OF_THESE = f'SELECT id, payload FROM "{Event._meta.db_table}" WHERE id = ANY(%s)'  # noqa: S608 (a constant)


def read_payloads(ids: Sequence[int], *, most: int) -> tuple[dict[int, bytes], bool]:
    """The payloads of events in the order given, until they come to `most` bytes; that of the first one in any case.

    By the ids alone: in a statement that sorts, SQLite would keep the payloads of all that it sorts in memory.

    Returns:
        The payloads by id, without those that retention has taken meanwhile; and whether there was no room for all.
    """
    if not ids:
        return {}, False
    read = _read_by_size if connection.vendor == "postgresql" else _read_row_by_row
    return read(ids, most)


def _read_row_by_row(ids: Sequence[int], most: int) -> tuple[dict[int, bytes], bool]:
    """From SQLite, which reads a row when it is asked for it, and has to read a text to know how long it is."""
    payloads: dict[int, bytes] = {}
    total = 0
    with connection.cursor() as cursor:
        cursor.execute(_ROW_BY_ROW, [msgspec.json.encode(ids).decode()])
        for pk, payload in cursor:
            total += len(payload)
            if payloads and total > most:
                return payloads, True
            if payload:
                payloads[pk] = payload
    return payloads, False


def _read_by_size(ids: Sequence[int], most: int) -> tuple[dict[int, bytes], bool]:
    """From PostgreSQL, which sends all rows of a statement at once, and knows how long a text is without reading it."""
    with connection.cursor() as cursor:
        cursor.execute(_SIZES, [list(ids)])
        sizes = dict(cursor.fetchall())
    chosen: list[int] = []
    total = 0
    cut = False
    for pk in ids:
        size = sizes.get(pk, 0)
        if chosen and total + size > most:
            cut = True
            break
        chosen.append(pk)
        total += size
    with one_large_at_a_time(total), connection.cursor() as cursor:
        cursor.cursor.adapters.register_loader("text", _undecoded())
        cursor.execute(_OF_THESE, [chosen])
        payloads = {pk: payload for pk, payload in cursor if payload}
    drop_connection_after(total)
    return payloads, cut


@cache
def _undecoded() -> type[Any]:
    """What makes psycopg give a text as the bytes that came, for the cursor that it is registered with."""
    # SQLite's processes do without psycopg.
    from psycopg.adapt import Loader

    class Undecoded(Loader):
        def load(self, data: Any) -> bytes:
            return bytes(data)

    return Undecoded
