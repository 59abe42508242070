"""Payloads for people: indented, highlighted, and two of them line by line beside each other. All output is escaped."""

import json
from dataclasses import dataclass
from decimal import Decimal
from difflib import SequenceMatcher

import msgspec
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import JsonLexer

#: Characters of a text that are shown: a payload may have ten million, which no browser lays out in time.
SHOWN = 200_000
#: Characters that are highlighted: half a second of work on a slow machine, and beyond it nobody reads colours.
HIGHLIGHTED = 50_000
#: Lines of a payload that are compared: the work grows with their square.
COMPARED = 1_500

_formatter = HtmlFormatter(nowrap=True)
_sorted = msgspec.json.Encoder(order="sorted", decimal_format="number")


@dataclass(slots=True)
class Text:
    """A text as it is shown, and how many characters of it are not."""

    html: SafeString
    hidden: int


@dataclass(slots=True)
class Line:
    """One line of each side; None where a side has none."""

    left: str | None
    right: str | None

    @property
    def same(self) -> bool:
        return self.left == self.right


def pretty(raw: str) -> Text:
    """Indents and highlights JSON; numbers, order of keys and text stay. Anything else is shown as it is."""
    try:
        text = msgspec.json.format(raw, indent=2)
    except (msgspec.DecodeError, RecursionError):
        text = raw
    shown = text[:SHOWN]
    if len(shown) > HIGHLIGHTED:
        return Text(escape(shown), len(text) - len(shown))
    # Pygments escapes what it formats.
    html = mark_safe(highlight(shown, JsonLexer(), _formatter))  # noqa: S308
    return Text(html, len(text) - len(shown))


def compare(left: str, right: str) -> list[Line] | None:
    """Two JSON texts line by line, keys sorted, since their order says nothing (RFC 8259 section 4).

    Returns:
        The lines of both, or None where they are too long to compare.
    """
    one, other = _lines(left), _lines(right)
    if len(one) + len(other) > COMPARED:
        return None
    lines: list[Line] = []
    for _, first, last, begin, end in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        for index in range(max(last - first, end - begin)):
            lines.append(
                Line(
                    one[first + index] if first + index < last else None,
                    other[begin + index] if begin + index < end else None,
                )
            )
    return lines


def _lines(raw: str) -> list[str]:
    # Every number as a decimal, so that none is rounded.
    tree = json.loads(raw, parse_int=Decimal, parse_float=Decimal)
    return msgspec.json.format(_sorted.encode(tree), indent=2).decode().split("\n")
