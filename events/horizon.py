"""How far the events may be listed: up to an id below which nothing can appear any more.

On PostgreSQL an event gets its id before its transaction commits, and parallel drains commit in any order.
A reader that has gone past an id that is still to be committed would never see it. So a drain first takes a lock that
all may share and whose number says above which id its own will lie; a reader stops at the lowest number that is held. A
lock ends with its transaction, however that ends. SQLite has one writer: ids are committed in the order of the ids.
"""

from django.db import connection

from events.models import Event

#: What the upper 16 of a lock's 64 bits hold, so that it is no other program's; the lower 48 are the id.
LOCK_SPACE = 0x4576

# Identity columns are numbered by the sequence of this name.
_IDS = f'"{Event._meta.db_table}_id_seq"'

# The last id that was given out is read before the lock is taken, so what is inserted after this lies above it.
_HOLD = f"""
    SELECT pg_advisory_xact_lock_shared(({LOCK_SPACE}::bigint << 48) + last_value - (NOT is_called)::int) FROM {_IDS}
"""  # noqa: S608 (a constant)

# Locks are looked at after the last id has been read, because the condition on them needs it: a drain whose lock is not
# seen here either has committed or will be given higher ids. Its own transaction a session sees anyway.
_SETTLED = f"""
    SELECT coalesce(
        (
            SELECT min(held.id)
            FROM (
                SELECT ((classid::bigint << 32) | objid::bigint) & ((1::bigint << 48) - 1) AS id
                FROM pg_locks
                WHERE locktype = 'advisory' AND objsubid = 1 AND classid::bigint >> 16 = {LOCK_SPACE}
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND pid <> pg_backend_pid()
            ) AS held
            WHERE held.id <= given.last
        ),
        given.last
    )
    FROM (SELECT last_value - (NOT is_called)::int AS last FROM {_IDS}) AS given
"""  # noqa: S608 (a constant)


def hold() -> None:
    """Keeps readers from going past the events that this transaction is about to insert, until it ends."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_HOLD)


def settled() -> int | None:
    """The id up to which all events are there that ever will be; None where that is every one.

    To be asked before the events are read, in a statement of its own: they must be read in a later snapshot.
    """
    if connection.vendor != "postgresql":
        return None
    with connection.cursor() as cursor:
        cursor.execute(_SETTLED)
        return int(cursor.fetchone()[0])
