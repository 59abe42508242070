"""Turns the body of a publish into events: all of it, or a Refused that names every event and field that is wrong."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

#: Problems listed in one answer; the count in its text is of all of them.
MAX_PROBLEMS = 100
#: Levels a payload may nest. Far below what any JSON reader gives up at (Python's at about 990).
MAX_NESTING = 100
#: Characters of a wrong value that an error repeats.
SHOWN_VALUE = 60

Key = Annotated[str, Meta(min_length=1, max_length=255)]


class Event(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An event as it is published. Two are the same event when topic and event_id are equal."""

    topic: Annotated[Key, Meta(description="What the event is about.", examples=["user.created"])]
    event_id: Annotated[Key, Meta(description="Unique within the topic.", examples=["evt-12345"])]
    source: Annotated[Key, Meta(description="Who published it.", examples=["auth-service"])]
    timestamp: (
        Annotated[
            str,
            Meta(
                description="When it happened: RFC 3339 / ISO 8601, UTC where no offset is given. "
                "Left out, it is the time of acceptance.",
                examples=["2025-10-21T14:30:00Z"],
                extra_json_schema={"format": "date-time"},
            ),
        ]
        | UnsetType
    ) = UNSET
    payload: (
        Annotated[
            Raw,
            Meta(
                description="Any JSON object; it comes back exactly as it went in. Left out, it is {}.",
                extra_json_schema={"type": "object", "examples": [{"user_id": 123, "email": "test@example.com"}]},
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
    """One thing that is wrong: with which event (None: with the whole body), in which field, and how to mend it."""

    index: int | None
    field: str | None
    message: str


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

    def __init__(self, count: int, limit: int) -> None:
        super().__init__(f"{count} events in one publish are too many: send at most {limit}.")


_EMPTY = Raw(b"{}")
_IGNORED = ("id", "received_at", "batch_id")
_FIELDS = {field.name: field for field in msgspec.structs.fields(Event)}
_one = msgspec.json.Decoder(Event)
_many = msgspec.json.Decoder(list[Event])
_envelope = msgspec.json.Decoder(_Envelope)
_kept = msgspec.json.Decoder(list[Kept])
_object = msgspec.json.Decoder(dict[str, Raw])
_array = msgspec.json.Decoder(list[Raw])
_payload = msgspec.json.Decoder(dict[str, Any])
_text = msgspec.json.Decoder(str)
_encoder = msgspec.json.Encoder()

#: An escaped U+0000: its backslash is not itself escaped.
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def decode(body: bytes, *, max_events: int) -> list[Event]:
    """Reads one event object, an array of them, or {"events": [...]}.

    Args:
        body: JSON in UTF-8 (RFC 8259 section 8.1).
        max_events: the most events that one publish may have.

    Returns:
        The events in the order of the body, each timestamp in UTC or unset, each payload the bytes that were sent.

    Raises:
        Refused: something is wrong with the body; says all that is.
        TooMany: it has more than max_events.
    """
    try:
        body.decode()
        events = _decode_quickly(body)
        if 0 < len(events) <= max_events:
            risky = b"\\u0000" in body
            for event in events:
                _check(event, risky=risky)
            return events
    except (ValueError, RecursionError):
        # Something is wrong somewhere: read it again, slowly, to say what and where.
        pass
    return _explain(body, max_events=max_events)


def encode(events: Sequence[Event]) -> bytes:
    """What the inbox keeps of a publish: a JSON array that can itself be published."""
    return _encoder.encode(events)


def decode_kept(body: bytes) -> list[Kept]:
    """Reads back what encode() wrote.

    Raises:
        ValueError: it is not what encode() wrote.
    """
    return _kept.decode(body)


def parse_timestamp(text: str) -> datetime:
    """Reads a date-time as RFC 3339 and ISO 8601 write it.

    Returns:
        The same instant in UTC; without an offset the text is taken to be in UTC.

    Raises:
        ValueError: it is not one, or is outside the years 1 to 9999 in UTC.
    """
    # A date alone is ISO 8601 but no date-time: at which hour would it have happened?
    if len(text) > 10 and (moment := datetime.fromisoformat(text.upper())):
        try:
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except OverflowError:
            pass
    raise ValueError(f"{_shown(text)} is not an ISO 8601 date-time")


def _decode_quickly(body: bytes) -> list[Event]:
    if body.lstrip()[:1] == b"[":
        return _many.decode(body)
    try:
        return [_one.decode(body)]
    except msgspec.ValidationError:
        return _envelope.decode(body).events


def _check(event: Event, *, risky: bool) -> None:
    """What the type of a field cannot say. Raises ValueError with the message for the publisher."""
    if event.timestamp is not UNSET:
        event.timestamp = _normal_timestamp(event.timestamp)
    if event.payload is UNSET:
        event.payload = _EMPTY
    else:
        _check_payload(event.payload, risky=risky)
    if risky:
        for text in (event.topic, event.event_id, event.source):
            _check_text(text)
    event.id = event.received_at = event.batch_id = UNSET


def _normal_timestamp(text: str) -> str:
    try:
        return parse_timestamp(text).isoformat()
    except ValueError:
        raise ValueError(f"{_shown(text)} is not an ISO 8601 date-time; send one like 2025-10-21T14:30:00Z") from None


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise ValueError("must not contain U+0000, which not every database can store")


def _check_payload(payload: Raw, *, risky: bool) -> None:
    raw = memoryview(payload)
    try:
        # Decoded in full though only the bytes are kept: what is stored, any JSON reader can read.
        tree = _payload.decode(raw)
    except msgspec.ValidationError as error:
        if _kind(bytes(raw)) != "an object":
            raise ValueError(f"must be a JSON object, not {_kind(bytes(raw))}") from None
        raise ValueError(f"must be JSON that every reader can read: {_reason(error)}") from None
    except RecursionError:
        raise ValueError(f"must not nest deeper than {MAX_NESTING} levels") from None
    text = bytes(raw)
    if text.count(b"{") + text.count(b"[") > MAX_NESTING and _deeper_than(tree, MAX_NESTING):
        raise ValueError(f"must not nest deeper than {MAX_NESTING} levels")
    if risky and _ESCAPED_NUL.search(text):
        raise ValueError("must not contain U+0000, which not every database can store")


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


def _explain(body: bytes, *, max_events: int) -> list[Event]:
    """Finds all that is wrong. Returns the events after all where it is nothing."""
    items = _items(body)
    if len(items) > max_events:
        raise TooMany(len(items), max_events)
    if not items:
        raise _refusal("There is no event in it: send at least one.")
    problems: list[Problem] = []
    count = broken = 0
    for index, item in enumerate(items):
        before = count
        for field, message in _problems(item):
            count += 1
            if len(problems) < MAX_PROBLEMS:
                problems.append(Problem(index=index, field=field, message=message))
        broken += count > before
    if not problems:
        # Only a field that stands twice leads here; the last one counts, for _problems() as for most JSON readers.
        events = [_one.decode(_encoder.encode(_object.decode(item))) for item in items]
        for event in events:
            _check(event, risky=True)
        return events
    events_are = "event is" if len(items) == 1 else "events are"
    raise Refused(
        f"{broken} of {len(items)} {events_are} not valid, so nothing was accepted; "
        + (f"the first {MAX_PROBLEMS} of {count} problems are listed." if count > len(problems) else "see errors."),
        problems,
    )


def _items(body: bytes) -> list[Raw]:
    """The events of the body, unread. Raises Refused where it is not JSON or has none of the three forms."""
    try:
        body.decode()
        kind = _kind(body.lstrip())
        if kind == "an array":
            return _array.decode(body)
        if kind != "an object":
            msgspec.json.decode(body)
            raise _refusal(f'It must be one event, an array of events, or {{"events": [...]}}, not {kind}.')
        fields = _object.decode(body)
        if "events" not in fields:
            return [Raw(body)]
        for name in fields:
            if name != "events":
                raise _refusal(f'"events" stands beside {_shown(name)}: send either one event or {{"events": [...]}}.')
        if _kind(bytes(fields["events"])) != "an array":
            raise _refusal(f'"events" must be an array of events, not {_kind(bytes(fields["events"]))}.')
        return _array.decode(fields["events"])
    except UnicodeDecodeError as error:
        raise _refusal(f"It is not UTF-8: byte {error.start} is {body[error.start]:#04x}.") from None
    except RecursionError:
        raise _refusal(f"It nests too deeply: a payload may have {MAX_NESTING} levels.") from None
    except msgspec.DecodeError as error:
        if not body.strip():
            raise _refusal("It is empty: send one event, or an array of events.") from None
        raise _refusal(f"It is not JSON: {_reason(error)}.") from None


def _refusal(message: str) -> Refused:
    return Refused(f"The body cannot be read as events. {message}", [Problem(index=None, field=None, message=message)])


def _problems(item: Raw) -> Iterator[tuple[str | None, str]]:
    """What is wrong with one event, as (field, message)."""
    raw = bytes(item)
    if (kind := _kind(raw)) != "an object":
        yield None, f"must be an object, not {kind}"
        return
    fields = _object.decode(raw)
    for name in fields:
        if name not in _FIELDS:
            known = ", ".join(name for name in _FIELDS if name not in _IGNORED)
            yield name[:255], f"is not a field of an event; it has {known}"
    for name, field in _FIELDS.items():
        if name not in fields:
            if field.required:
                yield name, "is missing"
        elif name not in _IGNORED and (message := _field_problem(name, fields[name])):
            yield name, message


def _field_problem(name: str, raw: Raw) -> str | None:
    kind = _kind(bytes(raw))
    try:
        if name == "payload":
            _check_payload(raw, risky=True)
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


def _kind(raw: bytes) -> str:
    return {b"{": "an object", b"[": "an array", b'"': "text", b"t": "true", b"f": "false", b"n": "null"}.get(
        raw[:1], "a number"
    )


def _shown(text: str) -> str:
    shown = text if len(text) <= SHOWN_VALUE else text[:SHOWN_VALUE] + "…"
    return msgspec.json.encode(shown).decode()


def _reason(error: msgspec.DecodeError) -> str:
    text = str(error).removeprefix("JSON is malformed: ").removesuffix(" - at `$[...]`")
    return text[:1].lower() + text[1:]
