"""Reads a date-time as RFC 3339 and ISO 8601 write it: the instant that they mean, or a ValueError."""

import re
from calendar import monthrange
from datetime import UTC, date, datetime, time, timedelta

import msgspec

#: Characters of a wrong value that an error repeats.
SHOWN_CHARACTERS = 60

#: What a datetime can tell apart.
_TICK = timedelta(microseconds=1)

_HOUR = r"(?:[01]\d|2[0-3])"
_SIXTIETH = r"[0-5]\d"

#: The form that nearly everybody sends, one fast call to read: every version of Python reads what this lets through
#: alike, but for 24:00:00 and 23:59:60, which some refuse. A minute of an offset, no version looks at.
_common = re.compile(r"\d\d\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:[0-5]\d)?", re.ASCII).fullmatch

#: All forms: calendar, week and ordinal dates, each extended (with separators) or basic.
_any = re.compile(
    rf"""
    (?P<year>\d{{4}}) (?P<dash>-?)
    (?: (?P<month>\d\d) (?P=dash) (?P<day>\d\d) | [Ww] (?P<week>\d\d) (?P=dash) (?P<weekday>\d) | (?P<ordinal>\d{{3}}) )
    [Tt\ ]
    (?P<hour>{_HOUR}|24)
    (?: (?P<colon>:?) (?P<minute>{_SIXTIETH})
        (?: (?P=colon) (?P<second>{_SIXTIETH}|60) (?: [.,] (?P<fraction>\d+) )? )?
    )?
    (?: [Zz] | (?P<sign>[+-]) (?P<offset_hour>{_HOUR})
        (?: (?P<offset_colon>:?) (?P<offset_minute>{_SIXTIETH})
            (?: (?P=offset_colon) (?P<offset_second>{_SIXTIETH}) )?
        )?
    )?
    """,
    re.ASCII | re.VERBOSE,
).fullmatch


def parse_timestamp(text: str) -> datetime:
    """Reads a date-time (RFC 3339 section 5.6, ISO 8601:2004 section 4.3).

    A fraction of a second may have any number of digits; those after the sixth are cut off. 24:00:00 is the next day's
    midnight. A leap second is the last microsecond of the second before it, which is as near as a datetime comes.

    Returns:
        The same instant in UTC; without an offset the text is taken to be in UTC.

    Raises:
        ValueError: it is not one, or is outside the years 1 to 9999 in UTC.
    """
    try:
        if _common(text):
            moment = datetime.fromisoformat(text)
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    try:
        return _uncommon(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{quoted(text)} is not an ISO 8601 date-time") from None


def quoted(text: str) -> str:
    """The text as JSON, cut where it is long, for an error that repeats it."""
    shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    return msgspec.json.encode(shown).decode()


def _uncommon(text: str) -> datetime:
    found = _any(text)
    if not found:
        raise ValueError
    fraction = found["fraction"] or ""
    since_midnight = timedelta(
        hours=_number(found["hour"]),
        minutes=_number(found["minute"]),
        seconds=_number(found["second"]),
        microseconds=int(fraction[:6].ljust(6, "0")),
    )
    if found["hour"] == "24" and (since_midnight != timedelta(days=1) or fraction.strip("0")):
        raise ValueError
    is_leap = found["second"] == "60"
    if is_leap:
        since_midnight = timedelta(hours=_number(found["hour"]), minutes=_number(found["minute"]), seconds=60) - _TICK
    moment = datetime.combine(_day(found), time(), UTC) + (since_midnight - _offset(found))
    if is_leap and not _ends_a_month(moment):
        raise ValueError
    return moment


def _day(found: re.Match[str]) -> date:
    year = int(found["year"])
    if found["week"]:
        return date.fromisocalendar(year, int(found["week"]), int(found["weekday"]))
    if found["ordinal"]:
        day = date(year, 1, 1) + timedelta(days=int(found["ordinal"]) - 1)
        if day.year != year:
            raise ValueError
        return day
    return date(year, int(found["month"]), int(found["day"]))


def _offset(found: re.Match[str]) -> timedelta:
    offset = timedelta(
        hours=_number(found["offset_hour"]),
        minutes=_number(found["offset_minute"]),
        # Of neither standard, but how Python and JavaScript write the local mean times of before 1900.
        seconds=_number(found["offset_second"]),
    )
    return -offset if found["sign"] == "-" else offset


def _ends_a_month(moment: datetime) -> bool:
    """Whether a leap second may follow (RFC 3339 section 5.7): at the end of a month, in UTC."""
    last_day = monthrange(moment.year, moment.month)[1]
    return (moment.day, moment.hour, moment.minute) == (last_day, 23, 59)


def _number(digits: str | None) -> int:
    return int(digits or 0)
