"""payload_search.py: a value in the payload finds its events, on every database, and with an index as without."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from events import payload_search
from events.models import Event
from events.payload_search import Condition, InvalidCondition, read_path

PAYLOADS = {
    "number": '{"user": {"id": 123}, "x": 1}',
    "text": '{"user":{"id":"123"}}',
    "float": '{"user":{"id":123.0}}',
    "true": '{"user":{"id":true}}',
    "text true": '{"user":{"id":"true"}}',
    "one": '{"user":{"id":1}}',
    "false": '{"user":{"id":false}}',
    "null": '{"user":{"id":null}}',
    "text null": '{"user":{"id":"null"}}',
    "missing": '{"user":{}}',
    "nothing": "{}",
    "list": '{"user":{"id":[123]}}',
    "list outside": '{"user":[{"id":123}]}',
    "object": '{"user":{"id":{"id":123}}}',
    "quote": '{"user":{"id":"it\'s 100% \\"so\\""}}',
    "unicode": '{"user":{"id":"M\\u00fcller"}}',
    "quoted": '{"user":{"id":"\\"123\\""}}',
    "negative": '{"user":{"id":-1.5}}',
    "large": '{"user":{"id":12345678901234567}}',
    "long": '{"user":{"id":"' + "x" * 10_000 + '"}}',
    "expired": "",
}

FOUND = [
    ("123", {"number", "text", "float"}),
    ("123.0", {"number", "float"}),
    ('"123"', {"text"}),
    ("true", {"true", "text true"}),
    ('"true"', {"text true"}),
    ("false", {"false"}),
    ("null", {"null", "text null"}),
    ("1", {"one"}),
    ("-1.5", {"negative"}),
    ("12345678901234567", {"large"}),
    ('it\'s 100% "so"', {"quote"}),
    ("Müller", {"unicode"}),
    ('"\\"123\\""', {"quoted"}),
    ("[123]", set()),
    ("", set()),
    ("x" * 10_000, {"long"}),
    ("1e400", set()),
    ("0123", set()),
]


def store(payloads: dict[str, str]) -> dict[int, str]:
    return {
        Event.objects.create(
            topic="t", event_id=name, source="s", timestamp=timezone.now(), payload=payload,
            received_at=timezone.now(), batch_id=1,
        ).pk: name
        for name, payload in payloads.items()
    }  # fmt: skip


@pytest.fixture(params=["without an index", "with an index"])
def names(request: pytest.FixtureRequest, transactional_db: None) -> Iterator[dict[int, str]]:
    indexed = request.param == "with an index"
    if indexed:
        assert payload_search.create_index(("user", "id"))
    yield store(PAYLOADS)
    payload_search.drop_index(("user", "id"))


@pytest.mark.parametrize(("value", "expected"), FOUND)
def test_a_value_finds_its_events(value: str, expected: set[str], names: dict[int, str]) -> None:
    condition = Condition(("user", "id"), value)
    found = Event.objects.filter(condition.expression).values_list("event_id", flat=True)
    assert set(found) == expected
    assert {names[pk] for pk in payload_search.matching(list(names), [condition])} == expected


@pytest.mark.django_db
def test_all_conditions_have_to_be_met() -> None:
    names = store(PAYLOADS)
    conditions = [Condition(("user", "id"), "123"), Condition(("x",), "1")]
    assert {names[pk] for pk in payload_search.matching(list(names), conditions)} == {"number"}


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["it's", "100%", "ä", "a b", "$", "0", "%s", "{}", "--", "#"])
def test_a_field_may_have_any_other_name(name: str) -> None:
    store({"found": f'{{"{name}": "yes"}}', "other": '{"yes": "yes"}'})
    condition = Condition(read_path(name), "yes")
    assert [event.event_id for event in Event.objects.filter(condition.expression)] == ["found"]


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", 'a"b', "a\\b", "a\nb", "a\x00", "x" * 256, "a." * 10 + "a"]
)
def test_a_path_that_cannot_be_searched_by_is_refused(text: str) -> None:
    with pytest.raises(InvalidCondition):
        read_path(text)


@pytest.mark.django_db(transaction=True)
def test_an_index_serves_the_search(django_assert_num_queries: Any) -> None:
    store({str(number): f'{{"user_id": {number}}}' for number in range(50)})
    payload_search.create_index(("user_id",))
    try:
        condition = Condition(("user_id",), "7")
        assert condition.is_indexed
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute("SET enable_seqscan = off")
            plan = Event.objects.filter(condition.expression).explain()
            if connection.vendor == "postgresql":
                cursor.execute("RESET enable_seqscan")
        assert payload_search._name(("user_id",)) in plan
    finally:
        payload_search.drop_index(("user_id",))


@pytest.mark.django_db(transaction=True)
def test_indexes_are_made_once_listed_and_removed() -> None:
    assert payload_search.create_index(("a", "b"))
    assert not payload_search.create_index(("a", "b"))
    assert payload_search.create_index(("c",))
    assert payload_search.indexed_paths() == [("a", "b"), ("c",)]
    assert payload_search.drop_index(("a", "b"))
    assert not payload_search.drop_index(("a", "b"))
    assert payload_search.drop_index(("c",))
    assert payload_search.indexed_paths() == []


@pytest.mark.django_db(transaction=True)
def test_an_event_can_expire_where_there_is_an_index() -> None:
    payload_search.create_index(("user", "id"))
    try:
        store({"number": PAYLOADS["number"]})
        Event.objects.update(payload="")
        assert not Event.objects.filter(Condition(("user", "id"), "123").expression).exists()
    finally:
        payload_search.drop_index(("user", "id"))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("number", ["1e-20000", "1" * 18, "-0", "1E+2", "0." + "1" * 20_000])
def test_an_event_with_an_odd_number_can_be_stored_where_there_is_an_index(number: str) -> None:
    payload_search.create_index(("n",))
    try:
        store({"odd": f'{{"n": {number}}}'})
        assert Event.objects.count() == 1
        list(Event.objects.filter(Condition(("n",), "5").expression))
    finally:
        payload_search.drop_index(("n",))
