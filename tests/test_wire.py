"""wire.py: all of a body becomes events, or a Refused says what is wrong and where."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from events import wire
from tests.conftest import event

DEEP = 100_000


def raw_event(**fields: str) -> bytes:
    """An event whose fields are given as raw JSON."""
    return (
        b"{"
        + ", ".join(
            f'"{name}": {value}'
            for name, value in ({"topic": '"t"', "event_id": '"1"', "source": '"s"'} | fields).items()
        ).encode()
        + b"}"
    )


def decode(body: Any, *, max_events: int = 1000) -> list[wire.Event]:
    return wire.decode(body if isinstance(body, bytes) else json.dumps(body).encode(), max_events=max_events)


def refusal(body: Any) -> wire.Refused:
    with pytest.raises(wire.Refused) as refused:
        decode(body)
    return refused.value


def problems(body: Any) -> list[tuple[int | None, str | None, str]]:
    return [(problem.index, problem.field, problem.message) for problem in refusal(body).problems]


def events_or_problems(body: Any, decode: Any = decode) -> list[Any]:
    try:
        return list(decode(body, max_events=1000))
    except wire.Refused as refused:
        return list(refused.problems)


def kept(body: Any) -> list[wire.Kept]:
    return wire.decode_kept(wire.encode(decode(body)))


# --- The three forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [event(), [event()], {"events": [event()]}], ids=["object", "array", "envelope"])
@pytest.mark.parametrize("around", [b"", b" \r\n\t"], ids=["bare", "spaced"])
def test_each_of_the_three_forms_gives_the_event(body: Any, around: bytes) -> None:
    [read] = decode(around + json.dumps(body).encode() + around)
    assert (read.topic, read.event_id, read.source, bytes(read.payload)) == ("t", "1", "test", b'{"n": 1}')


@pytest.mark.parametrize("wrap", [lambda events: events, lambda events: {"events": events}])
def test_events_keep_the_order_of_the_body(wrap: Any) -> None:
    assert [read.event_id for read in decode(wrap([event(str(n)) for n in (3, 1, 2)]))] == ["3", "1", "2"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"[]", "no event"),
        (b'{"events": []}', "no event"),
        (b"null", "not null"),
        (b"true", "not true"),
        (b'"text"', "not text"),
        (b"12", "not a number"),
        (b'{"events": {}}', '"events" must be an array of events, not an object'),
        (b'{"events": [], "topic": "t"}', '"events" stands beside "topic"'),
        (b'{"topic": "t"', "not JSON"),
        (raw_event() + b" x", "not JSON"),
        (b"'t'", "not JSON"),
    ],
)
def test_a_body_of_no_form_is_refused_as_a_whole(body: bytes, reason: str) -> None:
    [(index, field, message)] = problems(body)
    assert (index, field) == (None, None)
    assert reason in message


def test_the_largest_publish_is_read() -> None:
    assert len(decode([event(str(n)) for n in range(3)], max_events=3)) == 3


@pytest.mark.parametrize("fields", [{}, {"source": 1}], ids=["right", "wrong"])
def test_one_event_too_many_says_the_limit(fields: dict[str, Any]) -> None:
    with pytest.raises(wire.TooMany, match=r"4 events .* at most 3"):
        decode([event(str(n), **fields) for n in range(4)], max_events=3)


# --- Fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["topic", "event_id", "source"])
def test_a_key_has_1_to_255_characters(field: str) -> None:
    assert getattr(decode(event(**{field: "é" * 255}))[0], field) == "é" * 255
    assert problems(event(**{field: "é" * 256})) == [(0, field, "must have 1 to 255 characters, not 256")]
    assert problems(event(**{field: ""})) == [(0, field, "must have 1 to 255 characters, not 0")]


@pytest.mark.parametrize("field", ["topic", "event_id", "source"])
def test_a_key_is_required(field: str) -> None:
    body = event()
    del body[field]
    assert problems(body) == [(0, field, "is missing")]


@pytest.mark.parametrize("field", ["topic", "event_id", "source", "timestamp"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, "null"), (1, "a number"), (-1.5, "a number"), (True, "true"), (False, "false"), ([], "an array")],
)
def test_a_text_field_takes_nothing_but_text(field: str, value: Any, kind: str) -> None:
    if (field, value) == ("timestamp", None):
        pytest.skip("means that it is left out")
    assert problems(event(**{field: value})) == [(0, field, f"must be text, not {kind}")]


@pytest.mark.parametrize("field", ["timestamp", "payload"])
def test_null_means_left_out(field: str) -> None:
    left_out = event()
    left_out.pop(field, None)
    assert wire.encode(decode(event(**{field: None}))) == wire.encode(decode(left_out))


def test_null_is_also_read_where_something_else_is_wrong() -> None:
    assert [field for _, field, _ in problems(event(timestamp=None, payload=None, source=None))] == ["source"]


@pytest.mark.parametrize(("value", "kind"), [(1, "a number"), ("{}", "text"), ([], "an array"), (True, "true")])
def test_a_payload_is_nothing_but_an_object(value: Any, kind: str) -> None:
    assert problems(event(payload=value)) == [(0, "payload", f"must be a JSON object, not {kind}")]


def test_an_unknown_field_is_refused_by_name() -> None:
    [(index, field, message)] = problems(event(colour="red"))
    assert (index, field) == (0, "colour")
    assert "topic, event_id, source, timestamp, payload" in message


@pytest.mark.parametrize("item", [1, None, "text", [], True])
def test_an_item_that_is_no_object_is_refused_in_its_place(item: Any) -> None:
    [(index, field, message)] = problems([event(), item])
    assert (index, field) == (1, None)
    assert message.startswith("must be an object, not ")


@pytest.mark.parametrize("field", ["id", "received_at", "batch_id"])
@pytest.mark.parametrize("value", [1, None, "2025-10-21T14:30:00Z", {"a": []}])
def test_what_get_events_adds_is_ignored(field: str, value: Any) -> None:
    assert wire.encode(decode(event(**{field: value}))) == wire.encode(decode(event()))


def test_of_a_field_that_stands_twice_the_last_counts() -> None:
    [read] = kept(b'{"topic": 5, "topic": "a", "topic": "b", "event_id": "1", "source": "s"}')
    assert (read.topic, bytes(read.payload)) == ("b", b"{}")


def test_a_key_may_hold_any_character_but_nul() -> None:
    text = "\t\n \u007f\u0080é漢字🎉\ufffe\U0010ffff"
    [read] = kept(event(topic=text, event_id=text, source=text))
    assert (read.topic, read.event_id, read.source) == (text, text, text)


@pytest.mark.parametrize("field", ["topic", "event_id", "source"])
def test_nul_in_a_key_is_refused(field: str) -> None:
    [(index, name, message)] = problems(event(**{field: "a\0b"}))
    assert (index, name) == (0, field)
    assert "U+0000" in message


@pytest.mark.parametrize("payload", [r'{"a": "\u0000"}', r'{"\u0000": 1}', r'{"a": "\\\u0000"}', r'{"a": ["x\u0000"]}'])
def test_nul_anywhere_in_a_payload_is_refused(payload: str) -> None:
    [(index, name, message)] = problems(raw_event(payload=payload))
    assert (index, name) == (0, "payload")
    assert "U+0000" in message


@pytest.mark.parametrize("payload", [r'{"a": "\\u0000"}', r'{"a": "\\\\u0000"}'])
def test_a_backslash_before_u0000_is_only_text(payload: str) -> None:
    assert bytes(kept(raw_event(payload=payload))[0].payload) == payload.encode()


# --- All that is wrong, at once ---------------------------------------------------------------------------------------


def test_every_problem_is_listed_with_its_event_and_field() -> None:
    body = [
        event("1"),
        {"topic": "", "event_id": 2, "payload": []},
        "x",
        event("4", timestamp="yesterday", colour="red"),
    ]
    assert [(index, field) for index, field, _ in problems(body)] == [
        (1, "topic"),
        (1, "event_id"),
        (1, "source"),
        (1, "payload"),
        (2, None),
        (3, "colour"),
        (3, "timestamp"),
    ]


def test_the_detail_says_how_many_events_are_wrong() -> None:
    assert refusal([event(), 1, {}]).detail == "2 of 3 events are not valid, so nothing was accepted; see errors."


def test_the_first_100_problems_are_listed_and_all_are_counted() -> None:
    refused = refusal([{} for _ in range(50)])
    assert len(refused.problems) == 100
    assert refused.problems[-1].index == 33
    assert "the first 100 of 150 problems" in refused.detail


def test_exactly_100_problems_are_all_there_is() -> None:
    refused = refusal([event(source=1) for _ in range(100)])
    assert len(refused.problems) == 100
    assert "see errors" in refused.detail


def test_a_long_wrong_value_is_repeated_only_in_part() -> None:
    [(_, _, message)] = problems(event(timestamp="x" * 1000))
    assert "x" * 60 + "…" in message
    assert "x" * 61 not in message


def test_a_long_unknown_name_is_repeated_only_in_part() -> None:
    [(_, field, _)] = problems(event(**{"x" * 1000: 1}))
    assert field == "x" * 255


# --- Bombs ------------------------------------------------------------------------------------------------------------

NESTED = b"[" * DEEP + b"]" * DEEP
BOMBS = {
    "arrays nested 100,000 deep": NESTED,
    "arrays never closed": b"[" * DEEP,
    "objects nested 100,000 deep": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a payload nested 100,000 deep": raw_event(payload='{"a":' + NESTED.decode() + "}"),
    "a payload of objects nested 100,000 deep": raw_event(payload='{"a":' * DEEP + "1" + "}" * DEEP),
    "a nested payload in an array": b"[" + raw_event(payload='{"a":' + NESTED.decode() + "}") + b"]",
    "a nested payload in an envelope": b'{"events": [' + raw_event(payload='{"a":' + NESTED.decode() + "}") + b"]}",
    "a nested topic": raw_event(topic=NESTED.decode()),
    "a nested id, though ids are ignored": raw_event(id=NESTED.decode()),
    "an unknown field, nested": raw_event(x=NESTED.decode()),
    "a payload nested 101 deep": raw_event(payload='{"a":' + "[" * 100 + "]" * 100 + "}"),
    "an integer of 5,000 digits": raw_event(payload='{"a": ' + "9" * 5000 + "}"),
    "an integer of 5,000 digits alone": b"9" * 5000,
    "an integer of 5,000 digits as a topic": raw_event(topic="9" * 5000),
    "a float beyond all bounds": raw_event(payload='{"a": 1e999999999}'),
    "bytes that are not UTF-8": raw_event(topic='"\u0001"').replace(b"\x01", b"\xff"),
    "an overlong encoding": raw_event(topic='"\u0001"').replace(b"\x01", b"\xc0\xaf"),
    "a surrogate in UTF-8": raw_event(topic='"\u0001"').replace(b"\x01", b"\xed\xa0\x80"),
    "not UTF-8, in a payload": raw_event(payload='{"a": "\u0001"}').replace(b"\x01", b"\xff"),
    "not UTF-8, in an ignored field": raw_event(id='"\u0001"').replace(b"\x01", b"\xff"),
    "NaN": raw_event(payload='{"a": NaN}'),
    "Infinity": raw_event(payload='{"a": -Infinity}'),
    "U+0000 escaped in a topic": raw_event(topic=r'"a\u0000"'),
    "U+0000 escaped in a payload": raw_event(payload=r'{"a": "\u0000"}'),
    "U+0000 itself": raw_event(topic='"a\0"'),
    "U+0000 itself in a payload": raw_event(payload='{"a": "\0"}'),
    "a lone high surrogate": raw_event(topic=r'"\ud800"'),
    "a lone low surrogate": raw_event(topic=r'"\udfff"'),
    "a lone surrogate in a payload": raw_event(payload=r'{"a": "\ud800"}'),
    "a lone surrogate as a payload's key": raw_event(payload=r'{"\udfff": 1}'),
    "a lone surrogate in an array's event": b"[" + raw_event(payload=r'{"a": "\ud800x"}') + b"]",
    "a lone surrogate as a field's name": b"[" + raw_event(**{r"\ud800": "1"}) + b"]",
    "UTF-16": raw_event().decode().encode("utf-16"),
    "UTF-16 without its mark": raw_event().decode().encode("utf-16-le"),
    "UTF-32": raw_event().decode().encode("utf-32"),
    "two byte order marks": b"\xef\xbb\xbf" * 2 + raw_event(),
    "a line break inside a text": raw_event(payload='{"a": "\n"}'),
    "a number with a leading zero": raw_event(payload='{"a": 01}'),
    "an escape that is none": raw_event(payload=r'{"a": "\x"}'),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_words(name: str) -> None:
    assert all(message for _, _, message in problems(BOMBS[name]))


def test_a_payload_may_nest_100_levels() -> None:
    payload = '{"a":' + "[" * 99 + "]" * 99 + "}"
    assert bytes(kept(raw_event(payload=payload))[0].payload) == payload.encode()


@pytest.mark.parametrize("inner", ['{"a":%s}', "[%s]"], ids=["objects", "arrays"])
def test_a_payload_nested_101_levels_is_refused(inner: str) -> None:
    payload = "1"
    for _ in range(100):
        payload = inner.replace("%s", payload)
    assert problems(raw_event(payload='{"a":' + payload + "}")) == [
        (0, "payload", "must not nest deeper than 100 levels")
    ]


def test_no_depth_is_beyond_words() -> None:
    """The deepest that can be read depends on how deep the reader itself is called."""
    for levels in range(800, 1000):
        assert problems(raw_event(payload='{"a":' + "[" * levels + "]" * levels + "}"))


def test_a_wide_payload_is_not_a_deep_one() -> None:
    payload = '{"a": [' + "[]," * 500 + "{}]}"
    assert bytes(kept(raw_event(payload=payload))[0].payload) == payload.encode()


# --- Timestamps: test_timestamps.py has all forms -------------------------------------------------------------------


def test_a_timestamp_is_kept_as_its_instant_in_utc() -> None:
    timestamp = kept(event(timestamp="2025-10-21T14:30:00.5+05:30"))[0].timestamp
    assert timestamp == datetime(2025, 10, 21, 9, 0, 0, 500000, tzinfo=UTC)
    assert timestamp.utcoffset().total_seconds() == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["", "yesterday", "20251021203000Z", "1712101512030", "0001-01-01T00:00:00+00:01"])
def test_what_is_no_instant_is_refused(text: str) -> None:
    [(index, field, message)] = problems(event(timestamp=text))
    assert (index, field) == (0, "timestamp")
    assert message == f'"{text}" is not an ISO 8601 date-time; send one like 2025-10-21T14:30:00Z'


def test_a_timestamp_that_is_left_out_stays_out() -> None:
    assert kept(event())[0].timestamp is None


# --- Half a surrogate pair, NaN, a byte order mark --------------------------------------------------------------------

HALVES = [r"\ud83d", r"\uD83D", r"\ude00", r"\udfff", r"\ud83d\ud83d\ude00", r"\ude00\ud83d", r"\ud83dx", r"\ud83d\n"]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("around", ["%s", "[%s]", '{"events": [%s]}'], ids=["object", "array", "envelope"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, '"a%s"') for name in ("topic", "event_id", "source", "timestamp", "id")),
        ("payload", '{"a": ["b", "%s"]}'),
        ("payload", '{"a": {"%s": 1}}'),
    ],
)
def test_half_a_surrogate_pair_is_named_with_its_event_and_field(
    half: str, around: str, field: str, value: str
) -> None:
    good = "" if around == "%s" else raw_event(payload=r'{"a": [{"b, c": "\\\"\ud83d\ude00,"}, 1]}').decode() + ", "
    bad = raw_event(**{field: value.replace("%s", half)}).decode()
    [(index, name, message)] = problems(around.replace("%s", good + bad).encode())
    assert (index, name) == (1 if good else 0, field)
    assert "half of a surrogate pair" in message


def test_the_half_that_is_named_is_the_one_that_was_sent() -> None:
    [(_, _, message)] = problems(raw_event(topic=r'"\\ud83d \ud83d\ude00 \\\uDE01"'))
    assert r"\uDE01 is no character" in message


@pytest.mark.parametrize("text", [r"\ud83d\ude00", r"\\ud83d", r"\\\\ude00", r"\\\ud83d\ude00"])
def test_a_whole_pair_and_escaped_backslashes_are_text(text: str) -> None:
    payload = f'{{"a": "{text}"}}'
    assert bytes(kept(raw_event(payload=payload))[0].payload) == payload.encode()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("value", ["%s", '{"a": %s}', '{"a": ["NaN", %s, 1]}'])
def test_a_number_that_json_has_not_is_named_with_its_event_and_field(number: str, value: str) -> None:
    body = b"[" + raw_event() + b"," + raw_event(payload=value.replace("%s", number)) + b"]"
    [(index, field, message)] = problems(body)
    assert (index, field) == (1, "payload")
    assert message == f"has {number}, which is not JSON; send null, or text"


def test_what_can_be_placed_only_by_its_byte_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_SEARCHED_TOKENS", 5)
    body = raw_event(payload='{"a": [1, 2, 3, NaN]}')
    [(index, field, message)] = problems(body)
    assert (index, field) == (None, None)
    assert f"at byte {body.index(b'NaN')} NaN" in message


@pytest.mark.parametrize("body", [raw_event(), b"[" + raw_event() + b"]", b" \n" + raw_event()])
def test_a_byte_order_mark_is_taken(body: bytes) -> None:
    assert wire.encode(decode(b"\xef\xbb\xbf" + body)) == wire.encode(decode(body))


# --- One event a line -------------------------------------------------------------------------------------------------


def decode_lines(*lines: bytes, end: bytes = b"\n") -> list[wire.Event]:
    return wire.decode_lines(end.join(lines), max_events=1000)


def line_problems(*lines: bytes) -> list[tuple[int | None, Any, str | None]]:
    with pytest.raises(wire.Refused) as refused:
        decode_lines(*lines)
    return [(problem.index, problem.line, problem.field) for problem in refused.value.problems]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n", b"\n \t\r\n"])
@pytest.mark.parametrize("before", [b"", b"\n", b"\xef\xbb\xbf"])
def test_each_line_is_an_event_and_blank_ones_are_passed_over(end: bytes, before: bytes) -> None:
    lines = [raw_event(event_id=f'"{n}"') for n in range(3)]
    events = wire.decode_lines(before + end.join([*lines, b""]), max_events=3)
    assert [event.event_id for event in events] == ["0", "1", "2"]


def test_errors_name_the_line_as_well_as_the_index() -> None:
    lines = [raw_event(), b"", raw_event(source="1"), b" ", b"\r", raw_event(), b'{"topic": "t"', b"[]", b"x"]
    assert line_problems(*lines) == [(1, 3, "source"), (3, 7, None), (4, 8, None), (5, 9, None)]


def test_what_stops_a_line_from_being_json_is_named_with_its_field() -> None:
    assert line_problems(b"", raw_event(topic=r'"\ud83d"'), raw_event(payload='{"a": NaN}')) == [
        (0, 2, "topic"),
        (1, 3, "payload"),
    ]


@pytest.mark.parametrize(
    "lines",
    [(b'{"topic": "t", "event_id": "1",', b'"source": "s"}'), (raw_event() + b"," + raw_event(),), (b"[", b"]")],
    ids=["an event on two lines", "two events on a line", "an array"],
)
def test_an_event_is_one_line_and_a_line_one_event(lines: tuple[bytes, ...]) -> None:
    assert line_problems(*lines)


@pytest.mark.parametrize("body", [b"", b"\n \n"])
def test_lines_without_an_event_are_refused(body: bytes) -> None:
    with pytest.raises(wire.Refused, match="no event"):
        wire.decode_lines(body, max_events=1)


def test_a_line_too_many_says_the_limit() -> None:
    with pytest.raises(wire.TooMany, match="at most 2"):
        wire.decode_lines(b"x\n" * 3, max_events=2)


def test_bytes_that_are_not_utf_8_are_refused_in_lines_too() -> None:
    assert line_problems(raw_event(), raw_event(id='"\u0001"').replace(b"\x01", b"\xff")) == [(None, UNSET, None)]


@given(st.lists(st.binary(max_size=40) | st.just(raw_event()), max_size=5))
def test_any_lines_at_all_are_events_or_refused(lines: list[bytes]) -> None:
    assert events_or_problems(b"\n".join(lines), decode=wire.decode_lines)


# --- What a body may cost ---------------------------------------------------------------------------------------------

LIMIT = wire.MAX_VALUES


@pytest.mark.parametrize(
    ("payload", "values"),
    [
        ('{"a": [' + "[]," * (LIMIT - 2) + "1]}", LIMIT),
        ('{"a": [' + "{ }, " * (LIMIT - 2) + '"b"]}', LIMIT),
        ('{"a": [' + "1," * (LIMIT - 2) + r'"\"[,{\\", 1]}', LIMIT + 1),
        ("{" + ",".join(f'"{n}":[{n}]' for n in range(LIMIT // 2)) + "}", LIMIT),
        ("{" + ",".join(f'"{n}":[{n}]' for n in range(LIMIT // 2)) + ',"x":[\n]}', LIMIT + 1),
        ('{"a": "' + r",[{\"" * LIMIT + '"}', 1),
        ('{"a": [' + "[]," * 3_400_000 + "1]}", 3_400_002),
    ],
    ids=["empty arrays", "empty objects", "numbers", "a member each", "one more", "text", "10 MiB of empty arrays"],
)
def test_a_payload_has_at_most_100000_values(payload: str, values: int) -> None:
    body = b"[" + raw_event() + b"," + raw_event(payload=payload) + b"]"
    if values <= LIMIT:
        assert len(decode(body)) == 2
    else:
        assert problems(body) == [(1, "payload", "must not have more than 100,000 values in its objects and arrays")]


MANY = "1," * (wire.MAX_SEARCHED_COMMAS // 3)
#: Payloads that are all right, with more commas than a body with mistakes is searched for.
FULL = [raw_event(payload=f'{{"a": [{MANY}1]}}') for _ in range(4)]


UNKNOWN = "is not a field of an event; it has topic, event_id, source, timestamp, payload"
NO_DATE = '"x" is not an ISO 8601 date-time; send one like 2025-10-21T14:30:00Z'


@pytest.mark.parametrize(
    ("wrong", "field", "message"),
    [
        (raw_event(source="1"), "source", "expected `str`, got `int`"),
        (raw_event(colour="1", flavour="1"), "colour", UNKNOWN),
        (b'{"topic": "t", "event_id": "1"}', "source", "is missing"),
        (raw_event(timestamp='"x"'), "timestamp", NO_DATE),
        (raw_event(payload="[]"), "payload", "must be a JSON object, not an array"),
        (raw_event(payload='{"a": NaN}'), "payload", "has NaN, which is not JSON; send null, or text"),
        (b"5", None, "expected `object`, got `int`"),
    ],
    ids=["type", "unknown", "missing", "timestamp", "payload", "no number", "no object"],
)
@pytest.mark.parametrize(
    ("form", "line"), [(b"[%s]", UNSET), (b'{"events": [%s]}', UNSET), (b"%s", 5)], ids=["array", "envelope", "lines"]
)
def test_of_a_body_too_large_to_search_the_first_problem_is_told(
    wrong: bytes, field: str | None, message: str, form: bytes, line: Any
) -> None:
    body = form % (b"\n" if line is not UNSET else b",").join([*FULL, wrong])
    with pytest.raises(wire.Refused, match="the first problem is listed") as refused:
        (wire.decode if line is UNSET else wire.decode_lines)(body, max_events=10)
    assert refused.value.problems == [wire.Problem(4, field, message, line)]


def test_of_a_single_event_too_large_to_search_the_first_problem_is_told() -> None:
    body = raw_event(payload='{"a": "' + "," * (wire.MAX_SEARCHED_COMMAS + 1) + '"}', colour="1", flavour="2")
    assert [(index, field) for index, field, _ in problems(body)] == [(0, "colour")]


MEASURE = """
import sys
from events import wire

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

body = sys.stdin.buffer.read()
before = peak()
try:
    getattr(wire, sys.argv[1])(body, max_events=10_000)
except (wire.Refused, wire.TooMany) as refused:
    assert len(str(refused)) + sum(len(str(problem)) for problem in getattr(refused, "problems", [])) < 100_000
print((peak() - before) // 1024)
"""


def filled(body: str, unit: str) -> bytes:
    """A body of 10 MiB in which the unit is repeated at %s."""
    return body.replace("%s", unit * ((10 * 2**20 - len(body)) // len(unit.encode()))).encode()


ONE = raw_event().decode()[:-1]
NASTY = {
    "a payload of empty arrays": filled(ONE + ', "payload": {"a": [%s1]}}', "[],"),
    "payloads just within the limit": b"["
    + b",".join([raw_event(payload='{"a":[' + "{}," * 99_000 + "1]}")] * 35)
    + b"]",
    "unknown fields": (ONE + "".join(f',"{n:x}":1' for n in range(950_000)) + "}").encode(),
    "unknown fields with long names": (ONE + "".join(f',"{n:300}":1' for n in range(34_000)) + "}").encode(),
    "an unknown field with a very long name": filled(ONE + ', "%s": 1}', "x"),
    "events without anything": filled("[%s{}]", "{},"),
    "numbers for events": filled("[%s1]", "1,"),
    "too many small events": filled("[%s" + ONE + "}]", ONE + "},"),
    "a very long timestamp": filled(ONE + ', "timestamp": "%s"}', "x"),
    "half a pair behind everything else": filled(ONE + r', "payload": {"a": [%s"\ud83d"]}}', "1,"),
    "brackets": filled("%s", "["),
    "quotes": filled("%s", '"'),
    "lines of one number": filled("%s", "1\n"),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's highest memory in /proc")
@pytest.mark.parametrize("name", NASTY)
def test_no_body_of_10_mib_takes_ten_times_its_size(name: str) -> None:
    """What is taken beside the body itself; some of these took 1.7 GB."""
    function = "decode_lines" if "lines" in name else "decode"
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, function], input=NASTY[name], capture_output=True, check=True
    )
    assert int(measured.stdout) < 100


# --- What the inbox keeps ---------------------------------------------------------------------------------------------


def test_a_payload_is_kept_to_the_byte() -> None:
    payload = '{ "z" : 1.10, "a":[ 12345678901234567890123, -0.0, 1E+2 ] ,"é\\u00e9\\/": "\\n🎉", "z": null }'
    assert bytes(kept(raw_event(payload=payload))[0].payload) == payload.encode()


def test_a_payload_that_is_left_out_is_an_empty_object() -> None:
    assert bytes(kept(raw_event())[0].payload) == b"{}"


def test_what_is_kept_can_be_published_again() -> None:
    body = wire.encode(decode([event("1", timestamp="2025-10-21T14:30:00+02:00"), event("2")]))
    assert wire.encode(decode(body)) == body


@pytest.mark.parametrize("body", [b"", b"[", b"{}", b"[1]", b'[{"topic": "t"}]', b"\xff"])
def test_a_kept_body_that_is_broken_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        wire.decode_kept(body)


@given(
    st.binary(max_size=200) | st.text(alphabet='{}[]":,.truefalsn0123456789eE+-\\u dtopic', max_size=60).map(str.encode)
)
def test_any_bytes_at_all_are_events_or_refused(body: bytes) -> None:
    assert events_or_problems(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["topic", "event_id", "source", "timestamp", "payload", "id", "batch_id", "events", "x"])


@given(json_values | st.lists(st.dictionaries(fields, json_values), max_size=3) | st.dictionaries(fields, json_values))
def test_any_json_at_all_is_events_or_refused(body: Any) -> None:
    assert events_or_problems(body)
