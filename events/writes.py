"""Writes of many rows that the ORM has no fast words for: insert what is new, update each, add to counters.

All take their SQL from the ORM's own compiler, once, and give it to executemany, so tables, columns, quoting and
conflict clauses stay the ORM's business. `make bench` shows what that is worth. For PostgreSQL there is records.py.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar, cast

from django.db import connections, models
from django.db.models import F, Value
from django.db.models.functions import Greatest
from django.db.models.sql import InsertQuery, UpdateQuery

from events import records

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Fields whose values go to every database as they are; the others' are prepared by the field.
_PLAIN = (models.CharField, models.TextField, models.IntegerField, models.BooleanField, models.ForeignKey)


def _compiled_once(function: _Function) -> _Function:
    """functools.cache, but with the function's own types: to the stubs, a model class is not hashable."""
    return cast(_Function, cache(function))


class Prepared(list[Sequence[Any]]):
    """Rows as the database driver takes them."""


class ManyRowsQuerySet(models.QuerySet[Any]):
    """A queryset with writes for thousands of rows at a time. Rows are tuples, in the order of the columns named."""

    def insert_all(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[int]:
        """Inserts all rows in one statement, which is one transaction; other columns get their database defaults.

        What bulk_create() does, without compiling the statement anew each time and without a transaction around it.

        Returns:
            Their primary keys, in order.
        """
        sql = _insert_sql(self.model, tuple(columns), len(rows), (self.model._meta.pk.name,), self.db)
        return [pk for (pk,) in self._insert_returning(sql, columns, rows)]

    def insert_all_new(
        self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, returning: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        """Inserts, in one statement, each row none of whose unique keys is stored yet.

        Returns:
            What the columns named in returning hold in the rows that were inserted, in order.
        """
        sql = _insert_sql(self.model, tuple(columns), len(rows), tuple(returning), self.db)
        statement, word, names = sql.rpartition(" RETURNING ")
        return self._insert_returning(f"{statement} ON CONFLICT DO NOTHING{word}{names}", columns, rows)

    def _insert_returning(
        self, sql: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> list[tuple[Any, ...]]:
        values = [value for row in self._prepared(columns, rows) for value in row]
        connection = connections[self.db]
        cursor = records.binding_cursor(connection) if connection.vendor == "postgresql" else connection.cursor()
        with cursor:
            cursor.execute(sql, values)
            return list(cursor.fetchall())

    def insert_new(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
        """Inserts each row whose unique key is not stored yet, in the order given.

        Returns:
            How many were new.
        """
        return self._execute_each(_insert_new_sql(self.model, tuple(columns), self.db), self._prepared(columns, rows))

    def update_each(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], **same: Any) -> int:
        """Writes columns of rows, the last of which is the primary key that finds it, and the same values to all.

        Returns:
            How many rows there were to update.
        """
        nulls = tuple(name for name, value in same.items() if value is None)
        set_to = {name: value for name, value in same.items() if value is not None}
        sql = _update_sql(self.model, tuple(set_to), nulls, tuple(columns), self.db)
        [constants] = self._prepared(list(set_to), [list(set_to.values())])
        return self._execute_each(sql, [[*constants, *row] for row in self._prepared(columns, rows)])

    def prepare(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Prepared:
        """Rows for one of these writes, which would do it themselves, but perhaps where others wait for a lock."""
        return self._prepared(columns, rows)

    def _prepared(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Prepared:
        if isinstance(rows, Prepared):
            return rows
        connection = connections[self.db]
        moment = _adapter(connection)
        # Moments repeat: all events of a batch were received at the same one.
        known: dict[Any, Any] = {None: None}
        fields = _to_prepare(self.model, tuple(columns))
        prepared = Prepared()
        for row in rows:
            values = list(row)
            for place, field in fields:
                value = values[place]
                if field is not None:
                    values[place] = field.get_db_prep_save(value, connection)
                elif value in known:
                    values[place] = known[value]
                else:
                    values[place] = known[value] = moment(value)
            prepared.append(values)
        return prepared

    def _execute_each(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        if not rows:
            return 0
        connection = connections[self.db]
        if connection.vendor == "postgresql":
            return records.execute(connection, sql, rows)
        with connection.cursor() as cursor:
            cursor.executemany(sql, rows)
            return int(cursor.rowcount)


class CounterQuerySet(ManyRowsQuerySet):
    """Rows that count something of whatever their unique key names."""

    def add(
        self,
        rows: Iterable[Sequence[Any]],
        *,
        key: Sequence[str],
        counters: Sequence[str],
        latest: str | None = None,
        once: str | None = None,
    ) -> None:
        """Adds to the counters of each key, whose row is made where there is none.

        Increments, never read-and-write-back, so concurrent callers lose nothing; in the order of the key, so they
        cannot deadlock each other (PostgreSQL manual, section 13.3.4).

        Args:
            rows: one a key: the key's values, what to add to each counter, then the values of latest and once.
            key: the fields that name a row; a unique constraint has just these.
            counters: the fields that count.
            latest: a field that keeps the greatest value it was ever given.
            once: a field that keeps the first value it was given.
        """
        rows = sorted(rows)  # type: ignore[type-var]  # keys are text and moments
        if connections[self.db].vendor == "postgresql":
            named = [*key, *counters, *([latest] if latest else []), *([once] if once else [])]
            model: type[models.Model] = self.model
            sql = _upsert_sql(model, tuple(named), tuple(counters), latest, tuple(key), self.db)
            self._execute_each(sql, self._prepared(named, rows))
            return
        moments = [name for name in (latest, once) if name]
        begin = len(key)
        end = begin + len(counters)
        zeros = [0] * len(counters)
        self.insert_new([*key, *counters, *moments], [[*row[:begin], *zeros, *row[end:]] for row in rows])
        columns = [*counters, *([latest] if latest else []), *key]
        sql = _add_sql(self.model, tuple(counters), latest, tuple(key), self.db)
        last = end + bool(latest)
        self._execute_each(sql, self._prepared(columns, ([*row[begin:last], *row[:begin]] for row in rows)))


def _adapter(connection: Any) -> Callable[[Any], Any]:
    """What makes a moment one that the database driver takes.

    For a moment in UTC on SQLite it is what Django's own comes to in the end, without its look-ups of settings and time
    zones: 0.6 µs instead of 3.3, a fifth of what an event cost the worker.
    """
    adapt: Callable[[Any], Any] = connection.ops.adapt_datetimefield_value
    if connection.vendor != "sqlite" or connection.timezone is not UTC:
        return adapt
    return lambda moment: str(moment.replace(tzinfo=None)) if moment.tzinfo is UTC else adapt(moment)


def _fields(model: type[models.Model], columns: Sequence[str]) -> list[Any]:
    return [model._meta.get_field(name) for name in columns]


@_compiled_once
def _to_prepare(model: type[models.Model], columns: tuple[str, ...]) -> list[tuple[int, Any]]:
    """The places of the columns whose values are not plain, each with its field, or None where that holds moments."""
    fields = enumerate(_fields(model, columns))
    return [
        (place, None if isinstance(field, models.DateTimeField) else field)
        for place, field in fields
        if not isinstance(field, _PLAIN)
    ]


@_compiled_once
def _insert_sql(
    model: type[models.Model], columns: tuple[str, ...], rows: int, returning: tuple[str, ...], using: str
) -> str:
    query = InsertQuery(model)
    query.insert_values(_fields(model, columns), [model()] * rows)
    compiler: Any = query.get_compiler(using)
    compiler.returning_fields = _fields(model, returning)
    [(sql, _)] = compiler.as_sql()
    return str(sql)


@_compiled_once
def _insert_new_sql(model: type[models.Model], columns: tuple[str, ...], using: str) -> str:
    if connections[using].vendor == "postgresql":
        return records.insert_new_sql(model, columns, using)
    query = InsertQuery(model)
    query.insert_values(_fields(model, columns), [model()])
    [(sql, _)] = query.get_compiler(using).as_sql()
    # Django's own way of ignoring conflicts is INSERT OR IGNORE on SQLite, which also drops rows that break NOT NULL.
    return f"{sql} ON CONFLICT DO NOTHING"


@_compiled_once
def _update_sql(
    model: type[models.Model], same: tuple[str, ...], nulls: tuple[str, ...], columns: tuple[str, ...], using: str
) -> str:
    if connections[using].vendor == "postgresql":
        return records.update_sql(model, nulls, [*same, *columns], using)
    *changed, key = columns
    changes = {name: _sample(model, name) for name in [*same, *changed]} | dict.fromkeys(nulls)
    return _compiled(model, changes, [key], using)


@_compiled_once
def _add_sql(
    model: type[models.Model], counters: tuple[str, ...], latest: str | None, key: tuple[str, ...], using: str
) -> str:
    changes: dict[str, Any] = {name: F(name) + Value(1) for name in counters}
    if latest:
        changes[latest] = Greatest(F(latest), Value(_sample(model, latest)))
    return _compiled(model, changes, key, using)


@cache
def _upsert_sql(
    model: type[models.Model],
    columns: tuple[str, ...],
    counters: tuple[str, ...],
    latest: str | None,
    key: tuple[str, ...],
    using: str,
) -> str:
    return records.add_sql(model, columns, counters, latest, key, using)


def _compiled(model: type[models.Model], changes: dict[str, Any], key: Sequence[str], using: str) -> str:
    """An UPDATE. Its parameters come as the statement reads: what is set, in order, then the key."""
    rows = model._base_manager.using(using).all()
    for name in key:
        # One by one: a filter of several sorts them by name.
        rows = rows.filter(**{name: _sample(model, name)})
    query: Any = rows.query.chain(UpdateQuery)
    query.add_update_values(changes)
    sql, _ = query.get_compiler(using).as_sql()
    return str(sql)


def _sample(model: type[models.Model], name: str) -> Any:
    """A value that the field could have: only the place that it takes in the statement matters."""
    field = model._meta.get_field(name)
    if isinstance(field, models.DateTimeField):
        return datetime(2000, 1, 1, tzinfo=UTC)
    return 0 if isinstance(field, models.IntegerField) else ""
