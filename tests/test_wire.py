"""wire.py: all of a body becomes events, or a Refused says what is wrong and where."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def events_or_problems(body: Any) -> list[Any]:
    try:
        return list(decode(body))
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
    assert problems(event(**{field: value})) == [(0, field, f"must be text, not {kind}")]


@pytest.mark.parametrize(("value", "kind"), [(None, "null"), (1, "a number"), ("{}", "text"), ([], "an array")])
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
    "a byte order mark": b"\xef\xbb\xbf" + raw_event(),
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


# --- Timestamps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-10-21T14:30:00Z", datetime(2025, 10, 21, 14, 30, tzinfo=UTC)),
        ("2025-10-21t14:30:00z", datetime(2025, 10, 21, 14, 30, tzinfo=UTC)),
        ("2025-10-21 14:30:00", datetime(2025, 10, 21, 14, 30, tzinfo=UTC)),
        ("2025-10-21T14:30", datetime(2025, 10, 21, 14, 30, tzinfo=UTC)),
        ("2025-10-21T14:30:00+05:30", datetime(2025, 10, 21, 9, tzinfo=UTC)),
        ("2025-10-21T14:30:00-0800", datetime(2025, 10, 21, 22, 30, tzinfo=UTC)),
        ("2025-01-01T00:00:00+14:00", datetime(2024, 12, 31, 10, tzinfo=UTC)),
        ("2025-10-21T14:30:00.123456Z", datetime(2025, 10, 21, 14, 30, 0, 123456, tzinfo=UTC)),
        ("2025-10-21T14:30:00.123456789Z", datetime(2025, 10, 21, 14, 30, 0, 123456, tzinfo=UTC)),
        ("20251021T143000Z", datetime(2025, 10, 21, 14, 30, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999Z", datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
    ],
)
def test_a_timestamp_is_kept_as_its_instant_in_utc(text: str, moment: datetime) -> None:
    timestamp = kept(event(timestamp=text))[0].timestamp
    assert timestamp == moment
    assert timestamp.utcoffset().total_seconds() == 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2025-10-21",
        "2025-W43-2",
        "2016-12-31T23:59:60Z",  # Python's datetime has no leap seconds
        "2025-02-29T00:00:00Z",
        "2025-10-21T25:00:00Z",
        "2025-10-21T14:30:00+24:00",
        "2025-10-21T14:30:00Z\n",
        "10000-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "1761057000",
    ],
)
def test_what_is_no_instant_of_the_years_1_to_9999_is_refused(text: str) -> None:
    [(index, field, message)] = problems(event(timestamp=text))
    assert (index, field) == (0, "timestamp")
    assert "is not an ISO 8601 date-time; send one like 2025-10-21T14:30:00Z" in message


def test_a_timestamp_that_is_left_out_stays_out() -> None:
    assert kept(event())[0].timestamp is None


@given(
    st.datetimes(
        min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 31), timezones=st.timezones() | st.just(UTC)
    ).filter(lambda moment: moment.utcoffset() is not None)
)
def test_any_instant_with_any_offset_comes_back_as_the_same_instant(moment: datetime) -> None:
    assert kept(event(timestamp=moment.isoformat()))[0].timestamp == moment.astimezone(UTC)


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
