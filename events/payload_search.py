"""Finds events by a value in their payload: `payload.user.id=123`, fast where an operator has made an index for it.

In come the path and the text of a value, as a URL has them; out comes a condition for a queryset of events. Without an
index the database has to read each payload: search() looks at one event after the other, for about a second.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import islice
from time import monotonic
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
#: Seconds that a search without an index looks at events: as long as somebody waits for a page without wondering, and
#: short enough that a few of them leave a database with one disk to the others.
SEARCH_SECONDS = 1.0
#: Events of a search's first step and of any. Payloads have two bytes or ten million, so steps grow while fast.
FIRST_STEP, LARGEST_STEP = 50, 5_000
#: Seconds that a step should take: a tenth of the whole, so that the last one does not take it far beyond.
STEP_SECONDS = 0.1
#: Values that one search may ask for: each is one more look into every payload.
MAX_CONDITIONS = 10
#: How the names of the indexes begin; a hash of the path follows, because names in a database are short.
INDEX_PREFIX = "event_payload_"

_TABLE = Event._meta.db_table
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,3})?", re.ASCII)


#: Id and time of acceptance of an event: its place in either order.
Key = tuple[int, datetime]


class InvalidCondition(ValueError):
    """The path or the value cannot be searched by; its text says why."""


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


def read_conditions(parameters: Mapping[str, str]) -> list[Condition]:
    """Reads those of the parameters that ask for values in the payload, such as payload.user.id: 123.

    Raises:
        InvalidCondition: a path or a value cannot be searched by; says which and why.
    """
    conditions = [read_condition(name, value) for name, value in parameters.items() if name.startswith(PREFIX)]
    if len(conditions) > MAX_CONDITIONS:
        raise InvalidCondition(
            f"{PREFIX}… is given {len(conditions)} times; it can be given at most {MAX_CONDITIONS} times."
        )
    return conditions


def read_condition(name: str, value: str) -> Condition:
    """Reads the name of a parameter, such as payload.user.id, and its value.

    Raises:
        InvalidCondition: one of them cannot be searched by; says which and why.
    """
    try:
        condition = Condition(read_path(name.removeprefix(PREFIX)), value)
    except InvalidCondition as error:
        raise InvalidCondition(f"{name} cannot be searched by: {error}.") from None
    if "\x00" in _readings(value)[0]:
        raise InvalidCondition(f"{name} must not be compared with U+0000; no payload has it.")
    return condition


def read_path(text: str) -> tuple[str, ...]:
    """Reads a path such as user.id.

    Raises:
        InvalidCondition: it is empty, too long, or has a character that cannot be searched by.
    """
    path = tuple(text.split("."))
    if not all(path):
        raise InvalidCondition("name the fields from the outside to the inside, as in payload.user.id")
    if len(path) > MAX_LEVELS or len(text) > KEY_LENGTH:
        raise InvalidCondition(f"a path has at most {MAX_LEVELS} levels and {KEY_LENGTH} characters")
    if re.search(r'["\\\x00-\x1f]', text):
        raise InvalidCondition(
            "a field whose name has a quote, a backslash or a control character cannot be searched by"
        )
    return path


def matching(ids: Sequence[int], conditions: Sequence[Condition]) -> set[int]:
    """Which of some events meet all conditions. Reads the payload of each.

    Args:
        ids: ids of the events.
        conditions: what they have to meet.
    """
    # As one parameter: with one for each id, most of the time goes to the statement and not to the payloads.
    if connection.vendor == "postgresql":
        these = RawSQL("SELECT unnest(%s::bigint[])", [list(ids)])
    else:
        these = RawSQL("SELECT value FROM json_each(%s)", [msgspec.json.encode(ids).decode()])
    found = Event.objects.filter(*(condition.expression for condition in conditions), pk__in=these)
    return set(found.values_list("pk", flat=True))


@dataclass(frozen=True, slots=True)
class Looked:
    """What a search without an index came to.

    Attributes:
        found: ids of the events that match, in the order in which they were looked at.
        first, last: the first and the last event that were looked at; None where there was none.
        count: events that were looked at.
        more: whether there are events behind it.
        in_time: whether it ended because enough was found, or everything was looked at, and not by the clock.
    """

    found: list[int]
    first: Key | None
    last: Key | None
    count: int
    more: bool
    in_time: bool


def search(candidates: Iterator[Key], conditions: Sequence[Condition], *, enough: int) -> Looked:
    """Looks at one event after the other for those that meet all conditions, for about SEARCH_SECONDS.

    Args:
        candidates: the events, in the order in which they are wanted.
        conditions: what they have to meet.
        enough: matching events after which it ends.
    """
    began = monotonic()
    found: list[int] = []
    first: Key | None = None
    last: Key | None = None
    count, size = 0, FIRST_STEP
    while step := list(islice(candidates, size)):
        step_began = monotonic()
        first = first or step[0]
        matched = matching([pk for pk, _ in step], conditions)
        now = monotonic()
        for place, key in enumerate(step, start=1):
            last = key
            count += 1
            if key[0] not in matched:
                continue
            found.append(key[0])
            if len(found) == enough:
                return Looked(found, first, last, count, place < len(step) or _any_left(candidates), in_time=True)
        if now - began >= SEARCH_SECONDS:
            more = _any_left(candidates)
            return Looked(found, first, last, count, more, in_time=not more)
        size = min(LARGEST_STEP, max(1, int(size * min(2.0, STEP_SECONDS / max(now - step_began, 0.001)))))
    return Looked(found, first, last, count, more=False, in_time=True)


def hint(conditions: Sequence[Condition]) -> str:
    """What would make a search fast that had no index for these conditions; empty where nothing would."""
    indexed = indexed_paths()
    commands = [f"manage.py index {PREFIX}{'.'.join(each.path)}" for each in conditions if each.path not in indexed]
    return f"{' or '.join(commands)} makes it fast" if commands else ""


def _any_left(candidates: Iterator[Key]) -> bool:
    return next(candidates, None) is not None


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
            # What it knows of the values tells the planner when the index is worth its while.
            cursor.execute(f"ANALYZE {_TABLE}")
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
        # Of an integer that is too large for one, SQLite makes a float, as it does when it reads the payload.
        wanted.append((["integer", "real"], [number if abs(number) < 2**63 else float(number)]))
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
