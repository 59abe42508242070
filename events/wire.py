"""Turns the body of a publish into events: all of it, or a Refused that names every event and field that is wrong."""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from events.timestamps import parse_timestamp, quoted

#: Problems listed in one answer; the count in its text is of all of them.
MAX_PROBLEMS = 100
#: Levels a payload may nest. Far below what any JSON reader gives up at (Python's at about 990).
MAX_NESTING = 100
#: Values a payload may have in its arrays and objects, at every level. Most readers make an object of each, so that two
#: bytes become a hundred: this many are some 20 MB, and as many as 10 MiB can hold would be half a gigabyte.
MAX_VALUES = 100_000
#: Commas up to which a body that is not valid is searched for all its problems; beyond them only the first is told.
#: An event or a field takes up to 200 bytes while it is searched, and there is one to a comma at most.
MAX_SEARCHED_COMMAS = 200_000
#: Brackets, texts and commas that are looked at to name the field in which a body stops being JSON: some 0.25 s.
MAX_SEARCHED_TOKENS = 1_000_000

Key = Annotated[str, Meta(min_length=1, max_length=255)]


class Event(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An event as it is published. Two events are the same when topic and event_id are equal."""

    topic: Annotated[Key, Meta(description="What the event is about.", examples=["user.created"])]
    event_id: Annotated[Key, Meta(description="Unique within the topic.", examples=["evt-12345"])]
    source: Annotated[Key, Meta(description="Who published it.", examples=["auth-service"])]
    timestamp: (
        Annotated[
            str,
            Meta(
                description="When it happened: RFC 3339 / ISO 8601, UTC where no offset is given. "
                "Left out or null, it is the time of acceptance.",
                examples=["2025-10-21T14:30:00Z"],
                extra_json_schema={"format": "date-time"},
            ),
        ]
        | UnsetType
        | None
    ) = UNSET
    payload: (
        Annotated[
            Raw,
            Meta(
                description="Any JSON object; it comes back exactly as it went in. Left out or null, it is {}. "
                f"At most {MAX_VALUES:,} values, in at most {MAX_NESTING} levels.",
                extra_json_schema={
                    "type": ["object", "null"],
                    "examples": [{"user_id": 123, "email": "test@example.com"}],
                },
            ),
        ]
        | UnsetType
    ) = UNSET
    # What GET /events adds; ignored, so that its answer can be published again.
    id: Raw | UnsetType = UNSET
    received_at: Raw | UnsetType = UNSET
    batch_id: Raw | UnsetType = UNSET


class Kept(Struct):
    """An event as the inbox keeps it: read back without checking again what was checked at the door."""

    topic: str
    event_id: str
    source: str
    payload: Raw
    timestamp: datetime | None = None


class _Envelope(Struct, forbid_unknown_fields=True):
    events: list[Event]


class Problem(Struct):
    """One mistake: the event (None for the whole body), the field, and how to correct it."""

    index: int | None
    field: str | None
    message: str
    line: Annotated[int, Meta(description="Of application/x-ndjson, counted from 1.")] | UnsetType = UNSET


class Refused(Exception):
    """The body is not a publish; nothing of it may be accepted.

    Attributes:
        detail: one sentence for the publisher.
        problems: the first MAX_PROBLEMS of them.
    """

    def __init__(self, detail: str, problems: list[Problem]) -> None:
        super().__init__(detail)
        self.detail = detail
        self.problems = problems


class TooMany(Exception):
    """The publish has more events than the limit."""

    def __init__(self, count: int | str, limit: int) -> None:
        super().__init__(f"{count} events in one publish are too many: send at most {limit}.")


class _InvalidEvent(ValueError):
    """An event could be read, but something of what its types cannot say is wrong with it."""

    def __init__(self, index: int, event: Event) -> None:
        super().__init__(index)
        self.index = index
        self.event = event


class _Item(NamedTuple):
    """What should be an event, not read yet. Has a line where the body is one event a line."""

    raw: bytes | Raw
    line: int | UnsetType = UNSET


_EMPTY = Raw(b"{}")
_IGNORED = ("id", "received_at", "batch_id")
_FIELDS = {field.name: field for field in msgspec.structs.fields(Event)}
_UNKNOWN_FIELD = f"is not a field of an event; it has {', '.join(name for name in _FIELDS if name not in _IGNORED)}"
_one = msgspec.json.Decoder(Event)
_many = msgspec.json.Decoder(list[Event])
_envelope = msgspec.json.Decoder(_Envelope)
_kept = msgspec.json.Decoder(list[Kept])
_object = msgspec.json.Decoder(dict[str, Raw])
_array = msgspec.json.Decoder(list[Raw])
_payload = msgspec.json.Decoder(dict[str, Any])
_text = msgspec.json.Decoder(str)
_raw = msgspec.json.Decoder(Raw)
_encoder = msgspec.json.Encoder()

_KINDS = {b"{": "an object", b"[": "an array", b'"': "text", b"t": "true", b"f": "false", b"n": "null"}

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_is_envelope = re.compile(rb'\s*\{\s*"events"\s*:').match
#: A line that is not blank, from its first character.
_lines = re.compile(rb"[^ \t\r\n][^\n]*").finditer
#: An escaped U+0000: its backslash is not itself escaped.
_has_escaped_nul = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000").search

# Each passes over the bytes once and keeps nothing of them (possessive quantifiers): linear time, no memory.

#: MAX_VALUES commas and opening brackets of what is not empty, outside of texts: one value more than may be.
_has_too_many_values = re.compile(
    rb"""(?: (?: [^"\[{,]++ | "(?:[^"\\]++|\\.)*+" | [\[{](?=[ \t\r\n]*[\]}]) )*+ [\[{,] ){%d}""" % (MAX_VALUES + 1),
    re.DOTALL | re.VERBOSE,
).match
#: All up to the first escape of half a surrogate pair that has no other half.
_before_half_a_pair = re.compile(
    rb"""(?: [^\\]++ | \\[^u] | \\u(?![dD][89a-fA-F]) | \\u[dD][89abAB]..\\u[dD][c-fC-F].. )*+""",
    re.DOTALL | re.VERBOSE,
).match
_half_a_pair = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}").match
_number_that_is_none = re.compile(rb"-?(?:NaN|Infinity)").match
_tokens = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}:,]', re.DOTALL).finditer
#: What msgspec's errors say of where something is wrong: the byte, the event and its field, or the field that is.
_at_byte = re.compile(r"\(byte (\d+)\)$").search
_at_path = re.compile(r" - at `\$(?:\.events)?(?:\[(\d+)\])?(?:\.(\w+))?[^`]*`$")
_of_a_field = re.compile(r"Object (contains unknown|missing required) field `([^`]*)").match


def decode(body: bytes, *, max_events: int) -> list[Event]:
    """Reads one event object, an array of them, or {"events": [...]}.

    Args:
        body: JSON in UTF-8 (RFC 8259 section 8.1), with or without a byte order mark.
        max_events: the most events that one publish may have.

    Returns:
        The events in the order of the body, each timestamp in UTC or unset, each payload the bytes that were sent.

    Raises:
        Refused: something is wrong with the body; says all that is.
        TooMany: it has more than max_events.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK)
    try:
        body.decode()
        events = _decode_quickly(body)
        if len(events) > max_events:
            raise TooMany(len(events), max_events)
        _check_all(events, body)
    except (ValueError, RecursionError) as error:
        if body.count(b",") > MAX_SEARCHED_COMMAS:
            raise _first_problem(body, error) from None
        # Something is wrong somewhere: read it again, slowly, to say what and where.
        return _explain([_Item(raw) for raw in _items(body)], max_events=max_events)
    if not events:
        raise _nothing_sent()
    return events


def decode_lines(body: bytes, *, max_events: int) -> list[Event]:
    """Reads one event object a line (application/x-ndjson); blank lines are passed over.

    Args, Returns, Raises: as decode(). What is refused also has its line, counted from 1.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK)
    items = list(islice(_numbered_lines(body), max_events + 1))
    if len(items) > max_events:
        raise TooMany(f"More than {max_events}", max_events)
    events: list[Event] = []
    try:
        body.decode()
        for item in items:
            events.append(_one.decode(item.raw))
        _check_all(events, body)
    except UnicodeDecodeError as error:
        raise _not_utf8(body, error) from None
    except (ValueError, RecursionError) as error:
        if body.count(b",") > MAX_SEARCHED_COMMAS:
            index = error.index if isinstance(error, _InvalidEvent) else len(events)
            raise _first_problem(bytes(items[index].raw), error, index=index, line=items[index].line) from None
        return _explain(items, max_events=max_events)
    if not events:
        raise _nothing_sent()
    return events


def encode(events: Sequence[Event]) -> bytes:
    """What the inbox keeps of a publish: a JSON array that can itself be published."""
    return _encoder.encode(events)


def decode_kept(body: bytes) -> list[Kept]:
    """Reads back what encode() wrote.

    Raises:
        ValueError: it is not what encode() wrote.
    """
    return _kept.decode(body)


def _decode_quickly(body: bytes) -> list[Event]:
    if body.lstrip()[:1] == b"[":
        return _many.decode(body)
    return _envelope.decode(body).events if _is_envelope(body) else [_one.decode(body)]


def _numbered_lines(body: bytes) -> Iterator[_Item]:
    number, counted = 1, 0
    for found in _lines(body):
        number += body.count(b"\n", counted, found.start())
        counted = found.start()
        yield _Item(found[0], number)


def _check_all(events: Sequence[Event], body: bytes) -> None:
    """What the type of a field cannot say. Raises _InvalidEvent with the first event in which something is wrong."""
    risky = b"\\u0000" in body
    for index, event in enumerate(events):
        try:
            _check(event, risky=risky)
        except ValueError:
            raise _InvalidEvent(index, event) from None


def _check(event: Event, *, risky: bool) -> None:
    if event.timestamp is None:
        event.timestamp = UNSET
    elif event.timestamp is not UNSET:
        event.timestamp = _normal_timestamp(event.timestamp)
    event.payload = _EMPTY if event.payload is UNSET else _checked_payload(event.payload, risky=risky)
    if risky:
        for text in (event.topic, event.event_id, event.source):
            _check_text(text)
    event.id = event.received_at = event.batch_id = UNSET


def _normal_timestamp(text: str) -> str:
    try:
        return parse_timestamp(text).isoformat()
    except ValueError as error:
        raise ValueError(f"{error}; send one like 2025-10-21T14:30:00Z") from None


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise ValueError("must not contain U+0000, which not every database can store")


def _checked_payload(payload: Raw, *, risky: bool) -> Raw:
    """The payload, or an empty one for null. Raises ValueError with the message for the publisher."""
    text = bytes(payload)
    # A value takes two bytes at least, with the comma or bracket before it.
    if (
        len(text) > 2 * MAX_VALUES
        and text.count(b",") + text.count(b"[") + text.count(b"{") > MAX_VALUES
        and _has_too_many_values(text)
    ):
        raise ValueError(f"must not have more than {MAX_VALUES:,} values in its objects and arrays")
    try:
        # Decoded in full though only the bytes are kept: what is stored, any JSON reader can read.
        tree = _payload.decode(text)
    except msgspec.ValidationError as error:
        if text == b"null":
            return _EMPTY
        if (kind := _kind(text)) != "an object":
            raise ValueError(f"must be a JSON object, not {kind}") from None
        raise ValueError(f"must be JSON that every reader can read: {_reason(error)}") from None
    except RecursionError:
        raise ValueError(f"must not nest deeper than {MAX_NESTING} levels") from None
    if (
        len(text) > 2 * MAX_NESTING
        and text.count(b"{") + text.count(b"[") > MAX_NESTING
        and _deeper_than(tree, MAX_NESTING)
    ):
        raise ValueError(f"must not nest deeper than {MAX_NESTING} levels")
    if risky and _has_escaped_nul(text):
        raise ValueError("must not contain U+0000, which not every database can store")
    return payload


def _deeper_than(tree: Any, levels: int) -> bool:
    layer = [tree]
    for _ in range(levels):
        layer = [
            child
            for node in layer
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not layer:
            return False
    return True


# --- The slow way, for bodies in which something is wrong -------------------------------------------------------------


def _explain(items: Sequence[_Item], *, max_events: int) -> list[Event]:
    """Finds all that is wrong. Returns the events after all where it is nothing."""
    if len(items) > max_events:
        raise TooMany(len(items), max_events)
    if not items:
        raise _nothing_sent()
    problems: list[Problem] = []
    count = broken = 0
    for index, item in enumerate(items):
        before = count
        for field, message in _problems(item.raw):
            count += 1
            if len(problems) < MAX_PROBLEMS:
                problems.append(Problem(index, field, message, item.line))
        broken += count > before
    if not problems:
        # Only a field that stands twice leads here; the last one counts, for _problems() as for most JSON readers.
        events = [_one.decode(_encoder.encode(_object.decode(item.raw))) for item in items]
        for event in events:
            _check(event, risky=True)
        return events
    events_are = "event is" if len(items) == 1 else "events are"
    raise Refused(
        f"{broken} of {len(items)} {events_are} not valid, so nothing was accepted; "
        + (f"the first {MAX_PROBLEMS} of {count} problems are listed." if count > len(problems) else "see errors."),
        problems,
    )


def _first_problem(raw: bytes, error: Exception, *, index: int | None = None, line: int | UnsetType = UNSET) -> Refused:
    """What stopped the quick way, in few words and no time, for a body that would take long to be searched for more.

    Args:
        raw: the body, or the line of it.
        error: what was raised for it.
        index, line: of the event, where they are known.
    """
    field: str | None
    match error:
        case _InvalidEvent():
            index = error.index
            field, message = next(_problems(_encoder.encode(error.event)))
        case UnicodeDecodeError():
            return _not_utf8(raw, error)
        case RecursionError():
            field, message = None, f"nests too deeply: a payload may have {MAX_NESTING} levels"
        case msgspec.ValidationError():
            found = _at_path.search(str(error)[-200:])
            where, field = found.groups() if found else (None, None)
            if where:
                index = int(where)
            elif index is None and not _is_envelope(raw) and _kind(raw.lstrip()[:1]) == "an object":
                index = 0
            message = _reason(error)
            if of_a_field := _of_a_field(str(error)):
                field = of_a_field[2][:255]
                message = _UNKNOWN_FIELD if of_a_field[1] == "contains unknown" else "is missing"
        case _:
            where_in_raw, field, message = _not_json(raw, error)
            index = where_in_raw if index is None else index
    return Refused(
        "The body is not valid, so nothing was accepted; the first problem is listed. Where there are more than "
        f"{MAX_SEARCHED_COMMAS:,} commas, it is not searched for others.",
        [Problem(index, field, message, line)],
    )


def _items(body: bytes) -> list[Raw]:
    """The events of the body, unread. Raises Refused where it is not JSON or has none of the three forms."""
    try:
        body.decode()
        kind = _kind(body.lstrip()[:1])
        if kind == "an array":
            return _array.decode(body)
        if kind != "an object":
            _raw.decode(body)
            raise _refusal(f'It must be one event, an array of events, or {{"events": [...]}}, not {kind}.')
        fields = _object.decode(body)
        if "events" not in fields:
            return [Raw(body)]
        for name in fields:
            if name != "events":
                raise _refusal(f'"events" stands beside {quoted(name)}: send either one event or {{"events": [...]}}.')
        if (kind := _kind(fields["events"])) != "an array":
            raise _refusal(f'"events" must be an array of events, not {kind}.')
        return _array.decode(fields["events"])
    except UnicodeDecodeError as error:
        raise _not_utf8(body, error) from None
    except RecursionError:
        raise _refusal(f"It nests too deeply: a payload may have {MAX_NESTING} levels.") from None
    except msgspec.DecodeError as error:
        if not body.strip():
            raise _refusal("It is empty: send one event, or an array of events.") from None
        index, field, message = _not_json(body, error)
        if index is None:
            raise _refusal(f"It {message}.") from None
        raise Refused(
            f"The body cannot be read as events. Event {index} {message}.", [Problem(index, field, message)]
        ) from None


def _refusal(message: str) -> Refused:
    return Refused(f"The body cannot be read as events. {message}", [Problem(None, None, message)])


def _nothing_sent() -> Refused:
    return _refusal("There is no event in it: send at least one.")


def _not_utf8(body: bytes, error: UnicodeDecodeError) -> Refused:
    return _refusal(f"It is not UTF-8: byte {error.start} is {body[error.start]:#04x}.")


def _problems(raw: bytes | Raw) -> Iterator[tuple[str | None, str]]:
    """What is wrong with one event, as (field, message)."""
    try:
        if (kind := _kind(raw)) != "an object":
            _raw.decode(raw)
            yield None, f"must be an object, not {kind}"
            return
        fields = _object.decode(raw)
    except RecursionError:
        yield None, f"nests too deeply: a payload may have {MAX_NESTING} levels"
        return
    except msgspec.DecodeError as error:
        _, field, message = _not_json(bytes(raw), error)
        yield field, message
        return
    for name in fields:
        if name not in _FIELDS:
            yield name[:255], _UNKNOWN_FIELD
    for name, field_type in _FIELDS.items():
        if name not in fields:
            if field_type.required:
                yield name, "is missing"
        elif name not in _IGNORED and (problem := _field_problem(name, fields[name])):
            yield name, problem


def _field_problem(name: str, raw: Raw) -> str | None:
    kind = _kind(raw)
    try:
        if name == "payload":
            _checked_payload(raw, risky=True)
        elif name == "timestamp" and kind == "null":
            return None
        elif kind != "text":
            return f"must be text, not {kind}"
        elif name == "timestamp":
            _normal_timestamp(_text.decode(raw))
        else:
            text = _text.decode(raw)
            if not 1 <= len(text) <= 255:
                return f"must have 1 to 255 characters, not {len(text)}"
            _check_text(text)
    except ValueError as error:
        return str(error)
    return None


def _kind(raw: bytes | Raw) -> str:
    return _KINDS.get(bytes(memoryview(raw)[:1]), "a number")


def _not_json(body: bytes, error: Exception) -> tuple[int | None, str | None, str]:
    """Why the body is not JSON, as (index, field, message); with the event and its field where the cause has a name."""
    before_half = _before_half_a_pair(body)
    byte = before_half.end() if before_half else 0
    if half := _half_a_pair(body, byte):
        message = f"half of a surrogate pair: {half[0].decode()} is no character; send the whole pair, or \\ufffd"
    else:
        byte = int(found[1]) if (found := _at_byte(str(error))) else len(body)
        # Of -Infinity, msgspec names the second byte.
        number = _number_that_is_none(body, byte - 1) or _number_that_is_none(body, byte)
        if not number:
            return None, None, f"is not JSON: {_reason(error)}"
        message = f"{number[0].decode()}, which is not JSON; send null, or text"
    index, field = _place(body, byte)
    at = f" at byte {byte}" if index is None else ""
    return index, field, f"has{at} {message}"


def _place(body: bytes, byte: int) -> tuple[int | None, str | None]:
    """Which event, and which of its fields, a byte of the body is in: told by the brackets, keys and commas before."""
    # How many brackets are around an event.
    around = 1 if body.lstrip()[:1] == b"[" else 2 if _is_envelope(body) else 0
    depth = index = 0
    text = field = None
    for count, found in enumerate(_tokens(body, 0, byte)):
        token = found[0]
        if count == MAX_SEARCHED_TOKENS:
            return None, None
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
        elif depth == around and token == b",":
            index, field = index + 1, None
        elif depth == around + 1 and token == b",":
            field = None
        elif depth == around + 1 and token == b":":
            field = text
        elif depth == around + 1:
            text = token
    if depth <= around:
        return None, None
    return index, field.strip(b'"').decode(errors="replace")[:255] if field else None


def _reason(error: Exception) -> str:
    """msgspec's own words, without the place, cut where they repeat something long."""
    text = _at_path.sub("", str(error)).removeprefix("JSON is malformed: ")
    shown = text if len(text) <= 200 else text[:200] + "…"
    return shown[:1].lower() + shown[1:]
