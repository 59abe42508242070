"""Finds events by a value in their payload: `payload.user.id=123`, fast where an operator has made an index for it.

In come the path and the text of a value, as a URL has them; out comes a condition for a queryset of events. Without an
index the database has to read each payload, so whoever asks should look at few events at a time: see matching().
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgspec
from django.db import connection
from django.db.models import BooleanField
from django.db.models.expressions import RawSQL
from django.utils import timezone

from events.models import KEY_LENGTH, Event, PayloadIndex
from events.turn import writing

#: How the name of a parameter begins that asks for a value in the payload.
PREFIX = "payload."
#: Levels that a path may have.
MAX_LEVELS = 10
#: How the names of the indexes begin; a hash of the path follows, because names in a database are short.
INDEX_PREFIX = "event_payload_"

_TABLE = Event._meta.db_table
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,3})?", re.ASCII)


class InvalidPath(ValueError):
    """The path cannot be searched by; its text says why."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One value in the payload, and what it has to be.

    Attributes:
        path: the names of the fields that lead to it, from the outside to the inside.
        value: what it has to be, as text. 123 finds the number and the text "123", true the constant and the text;
            in quotes, "123" finds the text alone.
    """

    path: tuple[str, ...]
    value: str

    @property
    def is_indexed(self) -> bool:
        """Whether an index serves it. PostgreSQL's indexes hold no null."""
        if connection.vendor == "postgresql" and self.value == "null":
            return False
        return PayloadIndex.objects.filter(path=".".join(self.path)).exists()

    @property
    def expression(self) -> RawSQL:
        """The condition for the filter of a queryset of events."""
        found, kind = _VALUE[connection.vendor](self.path), _KIND[connection.vendor](self.path)
        choices, parameters = [], []
        for kinds, values in _WANTED[connection.vendor](self.value):
            one_of = f"{found} IN ({', '.join(['%s'] * len(values))})" if values else f"{found} IS NULL"
            choices.append(f"({one_of} AND {kind} IN ({', '.join(map(_literal, kinds))}))")
            parameters += values
        # Of the caller's words the path stands in it, as a literal, and the value does not.
        return RawSQL(f"({' OR '.join(choices)})", parameters, output_field=BooleanField())  # noqa: S611


def read_path(text: str) -> tuple[str, ...]:
    """Reads a path such as user.id.

    Raises:
        InvalidPath: it is empty, too long, or has a character that cannot be searched by.
    """
    path = tuple(text.split("."))
    if not all(path):
        raise InvalidPath("name the fields from the outside to the inside, as in payload.user.id")
    if len(path) > MAX_LEVELS or len(text) > KEY_LENGTH:
        raise InvalidPath(f"a path has at most {MAX_LEVELS} levels and {KEY_LENGTH} characters")
    if re.search(r'["\\\x00-\x1f]', text):
        raise InvalidPath("a field whose name has a quote, a backslash or a control character cannot be searched by")
    return path


def matching(ids: Sequence[int], conditions: Sequence[Condition]) -> set[int]:
    """Which of some events meet all conditions. Reads the payload of each.

    Args:
        ids: ids of the events; at most as many as one statement takes.
        conditions: what they have to meet.
    """
    found = Event.objects.filter(*(condition.expression for condition in conditions), pk__in=ids)
    return set(found.values_list("pk", flat=True))


# --- Indexes ----------------------------------------------------------------------------------------------------------


def create_index(path: tuple[str, ...]) -> bool:
    """Makes the index of a path, so that searching by it costs the same however many events there are.

    On PostgreSQL the service goes on meanwhile. SQLite has one writer, which this is for as long as it takes: publishes
    get a 503 after SQLITE_BUSY_SECONDS, and their publishers try again.

    Returns:
        Whether it was made; else it was there already.

    Raises:
        django.db.DatabaseError: it could not be made; it is not used, and making it can be tried again.
    """
    if path in indexed_paths():
        return False
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # One that was interrupted is left behind, kept up to date and never used.
            cursor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_name(path)}")
            # Hashes, because a value may be larger than an ordinary index can hold.
            cursor.execute(
                f"CREATE INDEX CONCURRENTLY {_name(path)} ON {_TABLE} USING hash (({_value_on_postgresql(path)}))"
            )
        _note(path)
        return True
    with writing(), connection.cursor() as cursor:
        cursor.execute(f"CREATE INDEX {_name(path)} ON {_TABLE} ({_value_on_sqlite(path)}, id)")
        _note(path)
    return True


def drop_index(path: tuple[str, ...]) -> bool:
    """Removes the index of a path.

    Returns:
        Whether there was one.
    """
    if path not in indexed_paths():
        return False
    with writing(), connection.cursor() as cursor:
        PayloadIndex.objects.filter(path=".".join(path)).delete()
        cursor.execute(f"DROP INDEX IF EXISTS {_name(path)}")
    return True


def indexed_paths() -> list[tuple[str, ...]]:
    """The paths that have an index, in the order in which they were made."""
    return [tuple(path.split(".")) for path in PayloadIndex.objects.order_by("pk").values_list("path", flat=True)]


def _note(path: tuple[str, ...]) -> None:
    PayloadIndex.objects.create(path=".".join(path), created_at=timezone.now())


def _name(path: tuple[str, ...]) -> str:
    return INDEX_PREFIX + sha256(".".join(path).encode()).hexdigest()[:16]


# --- What the databases make of it ------------------------------------------------------------------------------------

# An index serves an expression only where the statement has just that expression, so the path stands in it as it is. An
# event that has expired has no payload at all, which neither database can read as JSON.


def _literal(text: str) -> str:
    # Twice the percent sign: such a statement always has parameters.
    return "'" + text.replace("'", "''").replace("%", "%%") + "'"


def _value_on_sqlite(path: tuple[str, ...]) -> str:
    return f"json_extract(nullif(payload, ''), {_label(path)})"


def _kind_on_sqlite(path: tuple[str, ...]) -> str:
    return f"json_type(nullif(payload, ''), {_label(path)})"


def _label(path: tuple[str, ...]) -> str:
    return _literal("$" + "".join(f'."{name}"' for name in path))


def _wanted_on_sqlite(value: str) -> list[tuple[list[str], list[Any]]]:
    """Kinds of JSON values, and what json_extract() makes of those that are looked for."""
    text, number, constant = _readings(value)
    wanted: list[tuple[list[str], list[Any]]] = [(["text"], [text])]
    if number is not None:
        wanted.append((["integer", "real"], [number]))
    if constant:
        wanted.append(([constant], {"true": [1], "false": [0], "null": []}[constant]))
    return wanted


def _value_on_postgresql(path: tuple[str, ...]) -> str:
    return f"({_outer_on_postgresql(path)} ->> {_literal(path[-1])})"


def _kind_on_postgresql(path: tuple[str, ...]) -> str:
    return f"json_typeof({_outer_on_postgresql(path)} -> {_literal(path[-1])})"


def _outer_on_postgresql(path: tuple[str, ...]) -> str:
    # json and not jsonb, which refuses some numbers: an event with one could not be stored where there is an index.
    return "nullif(payload, '')::json" + "".join(f" -> {_literal(name)}" for name in path[:-1])


def _wanted_on_postgresql(value: str) -> list[tuple[list[str], list[Any]]]:
    """Kinds of JSON values, and what ->> makes of those that are looked for: a number is the text it was sent as."""
    text, number, constant = _readings(value)
    wanted: list[tuple[list[str], list[Any]]] = [(["string"], [text])]
    if number is not None:
        spellings = {value, str(number), str(float(number))}
        if float(number).is_integer() and abs(number) < 2**53:
            spellings.add(str(int(number)))
        wanted.append((["number"], sorted(spellings)))
    if constant == "null":
        wanted.append((["null"], []))
    elif constant:
        wanted.append((["boolean"], [constant]))
    return wanted


def _readings(value: str) -> tuple[str, int | float | None, str | None]:
    """A value as text, and as the number or the constant that it may also be."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        try:
            return msgspec.json.decode(value, type=str), None, None
        except msgspec.DecodeError:
            return value, None, None
    return value, _number(value), value if value in ("true", "false", "null") else None


def _number(value: str) -> int | float | None:
    if not _NUMBER.fullmatch(value):
        return None
    try:
        return msgspec.json.decode(value, type=int | float)
    except msgspec.ValidationError:
        # Too large for any that can be stored.
        return None


_VALUE = {"sqlite": _value_on_sqlite, "postgresql": _value_on_postgresql}
_KIND = {"sqlite": _kind_on_sqlite, "postgresql": _kind_on_postgresql}
_WANTED = {"sqlite": _wanted_on_sqlite, "postgresql": _wanted_on_postgresql}
