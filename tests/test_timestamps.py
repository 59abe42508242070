"""timestamps.py: what is accepted is the instant that RFC 3339 and ISO 8601 say, in every form; the rest is refused."""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events.timestamps import parse_timestamp

DAY = 86_400
MICROSECONDS = 1_000_000


def read(text: str) -> datetime | None:
    try:
        return parse_timestamp(text)
    except ValueError as error:
        assert "is not an ISO 8601 date-time" in str(error)  # noqa: PT017
        return None


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-10-21T14:30:00Z", "2025-10-21 14:30:00"),
        ("2025-10-21t14:30:00z", "2025-10-21 14:30:00"),
        ("2025-10-21 14:30:00", "2025-10-21 14:30:00"),
        ("2025-10-21T14:30", "2025-10-21 14:30:00"),
        ("2025-10-21T14", "2025-10-21 14:00:00"),
        ("2025-10-21T14Z", "2025-10-21 14:00:00"),
        ("2025-10-21T14:30:00+05:30", "2025-10-21 09:00:00"),
        ("2025-10-21T14:30:00-0800", "2025-10-21 22:30:00"),
        ("2025-10-21T14:30:00+02", "2025-10-21 12:30:00"),
        ("2025-10-21T14:30:00-00:00", "2025-10-21 14:30:00"),
        ("2025-10-21T14:30:00+23:59", "2025-10-20 14:31:00"),
        ("1883-11-18T12:03:58-07:52:58", "1883-11-18 19:56:56"),
        ("2025-10-21T14:30:00.1Z", "2025-10-21 14:30:00.100000"),
        ("2025-10-21T14:30:00,123456Z", "2025-10-21 14:30:00.123456"),
        ("2025-10-21T14:30:00.123456999Z", "2025-10-21 14:30:00.123456"),
        ("2025-10-21T14:30:00." + "9" * 5000 + "Z", "2025-10-21 14:30:00.999999"),
        ("20251021T143000Z", "2025-10-21 14:30:00"),
        ("20251021T143000.5+0530", "2025-10-21 09:00:00.500000"),
        ("20251021T1430", "2025-10-21 14:30:00"),
        ("20251021T14-08", "2025-10-21 22:00:00"),
        ("2025-W43-2T14:30:00Z", "2025-10-21 14:30:00"),
        ("2025W432T143000Z", "2025-10-21 14:30:00"),
        ("2020-W53-7T00:00Z", "2021-01-03 00:00:00"),
        ("2025-294T14:30:00Z", "2025-10-21 14:30:00"),
        ("2025294T1430Z", "2025-10-21 14:30:00"),
        ("2024-366T00:00Z", "2024-12-31 00:00:00"),
        ("2025-10-21T24:00:00Z", "2025-10-22 00:00:00"),
        ("2025-12-31T24:00+01:00", "2025-12-31 23:00:00"),
        ("9999-12-31T24:00:00+01:00", "9999-12-31 23:00:00"),
        ("2016-12-31T23:59:60Z", "2016-12-31 23:59:59.999999"),
        ("2016-12-31T15:59:60-08:00", "2016-12-31 23:59:59.999999"),
        ("2017-01-01T05:29:60.25+05:30", "2016-12-31 23:59:59.999999"),
        ("20150630T235960Z", "2015-06-30 23:59:59.999999"),
        ("0001-01-01T00:00:00Z", "0001-01-01 00:00:00"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31 23:59:59.999999"),
    ],
)
def test_what_is_taken_means_this_instant(text: str, moment: str) -> None:
    assert parse_timestamp(text) == datetime.fromisoformat(moment).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "separator", [chr(number) for number in range(128) if chr(number) not in "Tt "] + ["Ｔ", "٠", ""]
)
@pytest.mark.parametrize(
    "form", ["2025-10-21%s14:30:00Z", "20251021%s143000Z", "2025-W43-2%s14:30:00", "2025-294%s14:30", "2025W432%s1430"]
)
def test_only_t_or_one_space_separates_date_and_time(separator: str, form: str) -> None:
    assert read(form % separator) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "T", "yesterday", "now", "14:30:00Z", "2025", "2025-10", "2025-10-21", "2025-W43-2", "2025-294"),
        # Digits only, as the year to the second, or since 1970 in seconds, milli-, micro- and nanoseconds.
        *("20251021203000Z", "20251021010203Z", "202510211020Z", "20251021203000", "1761057000", "1712101512030"),
        *("1712101512030000", "1712101512030000000", "1712101512.030", "-1761057000", "1.7e9"),
        *("2025-02-29T00:00:00Z", "2025-13-01T00:00Z", "2025-00-10T00:00Z", "2025-10-32T00:00Z", "2025-10-00T00:00Z"),
        *("2025-W53-1T00:00Z", "2025-W00-1T00:00Z", "2025-W43-0T00:00Z", "2025-W43-8T00:00Z", "2025-W43T00:00Z"),
        *("2025-366T00:00Z", "2025-000T00:00Z", "2025-1021T00:00Z", "202510-21T00:00Z", "2025-W432T00:00Z"),
        *("2025-10-21T25:00:00Z", "2025-10-21T14:60:00Z", "2025-10-21T14:30:61Z", "2025-10-21T1430:00Z"),
        *("2025-10-21T14:3000Z", "2025-10-21T14:30:00.Z", "2025-10-21T14:30.5Z", "2025-10-21T14.5Z", "2025-10-21T1:2Z"),
        *("2025-10-21T24:00:01Z", "2025-10-21T24:01Z", "2025-10-21T24:00:00.0000001Z", "2025-10-21T24:00:60Z"),
        # No leap second: not at the end of a month, or not in UTC.
        *("2025-10-21T23:59:60Z", "2016-12-31T23:58:60Z", "2016-12-31T23:59:60+01:00", "2016-12-31T00:00:60Z"),
        *("2025-10-21T14:30:00+24:00", "2025-10-21T14:30:00+23:60", "2025-10-21T14:30:00+5", "2025-10-21T14:30:00+"),
        *("2025-10-21T14:30:00Z+01:00", "2025-10-21T14:30:00 +01:00", "2025-10-21T14:30:00 Z", "2025-10-21T14:30:00ZZ"),
        *("2025-10-21T14:30:00\u221208:00", "2025\u221210\u221221T14:30:00Z", "2025-10-21T14:30:00 UTC"),
        *("２０２５-10-21T14:30:00Z", "2025-10-21T14:30:0٠Z", "2025-10-21T14:30:00.١Z", "²025-10-21T14:30:00Z"),
        *("2025-10-21T14:30:00Z\n", "\n2025-10-21T14:30:00Z", " 2025-10-21T14:30:00Z", "2025-10-21T14:30:00Z\0"),
        *("10000-01-01T00:00:00Z", "+2025-10-21T14:30:00Z", "-0001-01-01T00:00:00Z", "25-10-21T14:30:00Z"),
        *("0000-01-01T00:00:00Z", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "9999-12-31T24:00:00Z"),
        *(
            "2025-10-21T14:30:00[Europe/Berlin]",
            "Tue, 21 Oct 2025 14:30:00 GMT",
            "21/10/2025 14:30",
            "2025/10/21 14:30",
        ),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    assert read(text) is None


def test_a_long_text_is_repeated_only_in_part() -> None:
    with pytest.raises(ValueError, match=r'^"x{60}…" is not'):
        parse_timestamp("x" * 1_000_000)


# --- Held against a reading of its own --------------------------------------------------------------------------------


def days_before(year: int) -> int:
    """Days from 1 January of the year 1 to that of the year, by the rule of leap years."""
    past = year - 1
    return past * 365 + past // 4 - past // 100 + past // 400


def is_leap_year(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def months(year: int) -> list[int]:
    return [31, 29 if is_leap_year(year) else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]


def read_date(text: str) -> int:
    """Days since 1 January of the year 1, as ISO 8601 says it, without Python's calendar."""
    extended = "-" in text
    digits = text.replace("-", "")
    year, rest = int(digits[:4]), digits[4:].upper()
    assert re.fullmatch(r"[0-9]{4}(W[0-9]{3}|[0-9]{3,4})", digits[:4] + rest)
    first = days_before(year)
    if rest.startswith("W"):
        assert text.count("-") == (2 if extended else 0)
        week, weekday = int(rest[1:3]), int(rest[3])
        # Week 1 has the year's first Thursday; 1 January of the year 1 was a Monday.
        monday = first + 3 - (first + 3) % 7
        following = days_before(year + 1)
        weeks = (following + 3 - (following + 3) % 7 - monday) // 7
        assert 1 <= week <= weeks
        assert 1 <= weekday <= 7
        return monday + (week - 1) * 7 + weekday - 1
    if len(rest) == 3:
        assert 1 <= int(rest) <= (366 if is_leap_year(year) else 365)
        return first + int(rest) - 1
    month, day = int(rest[:2]), int(rest[2:])
    assert 1 <= month <= 12
    assert 1 <= day <= months(year)[month - 1]
    return first + sum(months(year)[: month - 1]) + day - 1


def read_by_hand(text: str) -> int:
    """Microseconds since the beginning of the year 1 in UTC. Raises AssertionError or ValueError."""
    day, clock = re.split("[Tt ]", text, maxsplit=1)
    found = re.search(r"([Zz]|[+-].*)$", clock)
    zone = found[0] if found else "Z"
    clock = clock[: found.start()] if found else clock
    clock, _, fraction = clock.replace(",", ".").partition(".")
    hour, minute, second = (int(part) for part in [*re.findall("[0-9]{2}", clock), "00", "00"][:3])
    offset = 0
    if zone not in "Zz":
        parts = [*re.findall("[0-9]{2}", zone), "00", "00"][:3]
        offset = sum(int(part) * factor for part, factor in zip(parts, (3600, 60, 1), strict=True))
        offset = -offset if zone[0] == "-" else offset
    micro = int(fraction[:6].ljust(6, "0"))
    if second == 60:
        second, micro = 59, 999_999
    return ((read_date(day) * 24 + hour) * 3600 + minute * 60 + second - offset) * MICROSECONDS + micro


def since_year_1(moment: datetime) -> int:
    return (moment - datetime(1, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@st.composite
def written(draw: Any) -> str:
    """A moment in one of the forms that people and programs write."""
    day = draw(st.dates(min_value=date(2, 1, 1), max_value=date(9998, 12, 30)))
    dash = draw(st.sampled_from(["-", ""]))
    colon = draw(st.sampled_from([":", ""]))
    year, week, weekday = day.isocalendar()
    dates = [
        f"{day.year:04}{dash}{day.month:02}{dash}{day.day:02}",
        f"{year:04}{dash}W{week:02}{dash}{weekday}",
        f"{day.year:04}{dash}{day.timetuple().tm_yday:03}",
    ]
    moment = draw(st.times())
    fraction = draw(st.just("") | st.from_regex(r"[.,][0-9]{1,12}", fullmatch=True))
    clocks = [
        f"{moment.hour:02}",
        f"{moment.hour:02}{colon}{moment.minute:02}",
        f"{moment.hour:02}{colon}{moment.minute:02}{colon}{moment.second:02}{fraction}",
    ]
    zone = draw(
        st.sampled_from(["", "Z", "z"]) | st.from_regex(r"[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?", fullmatch=True)
    )
    return f"{draw(st.sampled_from(dates))}{draw(st.sampled_from('Tt '))}{draw(st.sampled_from(clocks))}{zone}"


@given(written())
def test_every_form_is_taken_as_the_instant_that_it_says(text: str) -> None:
    assert since_year_1(parse_timestamp(text)) == read_by_hand(text)


@given(
    written(), st.integers(0, 40), st.sampled_from("0123456789TtWwZz:-+., _\u0660\u2212") | st.just(""), st.booleans()
)
@example("2025-10-21T14:30:00Z", 10, "2", True)
@example("2025-10-21T14:30:00Z", 4, "", True)
def test_what_is_nearly_such_a_form_is_refused_or_the_instant_that_it_says(
    text: str, place: int, character: str, replaces: bool
) -> None:
    place %= len(text) + 1
    changed = text[:place] + character + text[place + replaces :]
    if (moment := read(changed)) is not None:
        assert since_year_1(moment) == read_by_hand(changed)


@given(st.from_regex(r"[0-9]{8,17}Z?", fullmatch=True))
def test_digits_alone_are_never_a_moment(text: str) -> None:
    assert read(text) is None


@given(
    st.datetimes(
        min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 31), timezones=st.timezones() | st.just(UTC)
    ).filter(lambda moment: moment.utcoffset() is not None)
)
def test_what_python_writes_comes_back_as_the_same_instant(moment: datetime) -> None:
    assert parse_timestamp(moment.isoformat()) == moment.astimezone(UTC)
