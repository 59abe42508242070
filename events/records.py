"""The writes of writes.py as PostgreSQL takes them fastest: all rows in one statement, as one JSON document.

A fifth of the time of executemany, and no temporary table (`make bench`). Rows are written in the order of their unique
key, so that two transactions with the same keys wait for each other instead of deadlocking (manual, section 13.3.4).
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper


def binding_cursor(connection: BaseDatabaseWrapper) -> Any:
    """A cursor that sends values to the server as they are, beside the statement.

    Django's cursors write them into the statement: there, escaped once more and copied four times, a payload of 10 MiB
    took 360 MB.
    """
    from psycopg import Cursor

    connection.ensure_connection()
    raw: Cursor[Any] = Cursor(connection.connection)
    return connection._prepare_cursor(raw)  # type: ignore[attr-defined]  # what connection.cursor() does


def execute(connection: BaseDatabaseWrapper, sql: str, rows: Sequence[Sequence[Any]]) -> int:
    """Gives the rows to one of the statements below.

    Returns:
        How many rows were written.
    """
    from psycopg.types.json import Json

    names = [f"c{place}" for place in range(len(rows[0]))]
    document = msgspec.json.encode([dict(zip(names, row, strict=True)) for row in rows])
    with binding_cursor(connection) as cursor:
        cursor.execute(sql, [Json(None, dumps=lambda _: document)])
        return int(cursor.rowcount)


def insert_new_sql(model: type[models.Model], columns: Sequence[str], using: str) -> str:
    """Inserts rows whose unique key is not stored yet. Ids are given out in the order of the rows."""
    quote = connections[using].ops.quote_name
    fields = _fields(model, columns)
    table, pk = model._meta.db_table, model._meta.pk
    assert pk is not None  # noqa: S101 (every model has one)
    sequence = quote(f"{table}_{pk.column}_seq")
    names = ", ".join(quote(field.column) for field in (pk, *fields))
    places = ", ".join(f"c{place}" for place in range(len(fields)))
    return (
        f"INSERT INTO {quote(table)} ({names}) "  # noqa: S608 (quoted names)
        # The ids are taken below the sort, so they do not follow it.
        f"SELECT id, {places} FROM (SELECT nextval('{sequence}') AS id, rows.* FROM {_rows(fields, using)}) AS rows"
        f"{_order(model, fields)} ON CONFLICT DO NOTHING"
    )


def add_sql(
    model: type[models.Model],
    columns: Sequence[str],
    counters: Sequence[str],
    latest: str | None,
    key: Sequence[str],
    using: str,
) -> str:
    """Adds to the counters of each key, whose row is made where there is none."""
    quote = connections[using].ops.quote_name
    fields = _fields(model, columns)
    table = quote(model._meta.db_table)
    names = ", ".join(quote(field.column) for field in fields)
    places = ", ".join(f"c{place}" for place in range(len(fields)))
    keys = ", ".join(quote(field.column) for field in _fields(model, key))
    changes = [f"{name} = {table}.{name} + EXCLUDED.{name}" for name in map(quote, counters)]
    if latest:
        name = quote(latest)
        changes.append(f"{name} = GREATEST({table}.{name}, EXCLUDED.{name})")
    return (
        f"INSERT INTO {table} ({names}) SELECT {places} FROM {_rows(fields, using)}"  # noqa: S608 (quoted names)
        f"{_order(model, fields)} ON CONFLICT ({keys}) DO UPDATE SET {', '.join(changes)}"
    )


def update_sql(model: type[models.Model], nulls: Sequence[str], columns: Sequence[str], using: str) -> str:
    """Writes columns of rows, the last of which is the primary key that finds it."""
    quote = connections[using].ops.quote_name
    fields = _fields(model, columns)
    table = quote(model._meta.db_table)
    *changed, key = (quote(field.column) for field in fields)
    changes = [f"{name} = c{place}" for place, name in enumerate(changed)] + [f"{quote(name)} = NULL" for name in nulls]
    found = f"{table}.{key} = c{len(changed)}"
    return f"UPDATE {table} SET {', '.join(changes)} FROM {_rows(fields, using)} WHERE {found}"  # noqa: S608


def _fields(model: type[models.Model], columns: Sequence[str]) -> list[Any]:
    return [model._meta.get_field(name) for name in columns]


def _rows(fields: Sequence[Any], using: str) -> str:
    # Characters as text: a cast to varchar(255) would cut off what an insert refuses.
    types = ("text" if isinstance(field, models.CharField) else field.db_type(connections[using]) for field in fields)
    return f"json_to_recordset(%s) AS rows ({', '.join(f'c{place} {kind}' for place, kind in enumerate(types))})"


def _order(model: type[models.Model], fields: Sequence[Any]) -> str:
    named = {field.name: place for place, field in enumerate(fields)}
    keys = [*map(list, model._meta.unique_together), *([field.name] for field in fields if field.unique)]
    order = [f"c{named[name]}" for key in keys for name in key]
    return f" ORDER BY {', '.join(order)}" if order else ""
