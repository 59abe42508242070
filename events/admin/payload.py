"""Payloads for people: indented, highlighted, and two of them line by line beside each other. All output is escaped.

Of a payload that may have ten million characters, only the beginning is read from the database and worked on.
"""

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from difflib import SequenceMatcher
from typing import Any

import msgspec
from django.db.models import QuerySet
from django.db.models.functions import Substr
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import JsonLexer

#: Characters of a text that are read and shown: more of it no browser lays out in time.
SHOWN = 200_000
#: Characters that are highlighted: half a second of work on a slow machine, and beyond it nobody reads colours.
HIGHLIGHTED = 50_000
#: Characters of two payloads together that are compared. What Python makes of them is some fifty times as large.
COMPARED_CHARACTERS = 200_000
#: Lines of two payloads together that are compared: the work grows with their cube at worst, to half a second.
COMPARED_LINES = 1_000

#: A string, also one that is cut off; a bracket, comma or colon; a number or word.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"?|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)

#: The beginning of a line of JSON that says whose value follows.
_NAME = re.compile(r'\s*(?:"(?:[^"\\]|\\.)*+":)?')

_formatter = HtmlFormatter(nowrap=True)
_sorted = msgspec.json.Encoder(order="sorted", decimal_format="number")


@dataclass(slots=True)
class Text:
    """A text as it is shown.

    Attributes:
        html: what is shown.
        cut: whether it has more than that.
    """

    html: SafeString
    cut: bool


@dataclass(slots=True)
class Line:
    """One line of each side; None where a side has none."""

    left: str | None
    right: str | None

    @property
    def same(self) -> bool:
        return self.left == self.right


def with_beginning(rows: QuerySet[Any], field: str, characters: int = SHOWN) -> QuerySet[Any]:
    """Rows whose `field`, which may be large, is read only as far as `beginning`; one character more says it is cut."""
    return rows.defer(field).annotate(beginning=Substr(field, 1, characters + 1))


def pretty(beginning: str) -> Text:
    """Indents and highlights JSON, whole or cut off; numbers, order of keys and text stay. Else it is shown as it is.

    Args:
        beginning: up to SHOWN characters of the text, and another one where it has more.
    """
    text, cut = beginning[:SHOWN], len(beginning) > SHOWN
    if cut or _is_json(text):
        text, whole = _indented(text)
        cut = cut or not whole
    if len(text) > HIGHLIGHTED:
        return Text(escape(text), cut)
    # Pygments escapes what it formats.
    return Text(mark_safe(highlight(text, JsonLexer(), _formatter)), cut)  # noqa: S308


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _indented(text: str) -> tuple[str, bool]:
    """JSON with a line for each member, up to SHOWN characters of it, and whether that is all.

    msgspec.json.format() takes whole documents only, and writes all of them: nested deep, a hundred times their size.
    """
    parts: list[str] = []
    size = depth = 0
    before = ""
    for match in _TOKEN.finditer(text):
        token = match[0]
        closes, opened = token in ("}", "]"), before in ("{", "[")
        if closes:
            depth = max(0, depth - 1)
        # None within empty brackets.
        if closes != opened or before == ",":
            token = "\n" + "  " * depth + token
        elif before == ":":
            token = " " + token
        parts.append(token)
        size += len(token)
        if size > SHOWN:
            return "".join(parts)[:SHOWN], False
        before = match[0]
        if before in ("{", "["):
            depth += 1
    return "".join(parts), True


def compare(left: str, right: str) -> list[Line] | None:
    """Two JSON texts line by line, keys sorted, since their order says nothing (RFC 8259 section 4).

    Returns:
        The lines of both, or None where they are too long to compare.
    """
    if len(left) + len(right) > COMPARED_CHARACTERS:
        return None
    one, other = _lines(left), _lines(right)
    if len(one) + len(other) > COMPARED_LINES:
        return None
    lines: list[Line] = []
    # Without the comma: a member that has become the last one is the same member.
    bare, other_bare = [line.rstrip(",") for line in one], [line.rstrip(",") for line in other]
    for tag, first, last, begin, end in SequenceMatcher(None, bare, other_bare, autojunk=False).get_opcodes():
        if tag == "equal":
            lines += [Line(line, line) for line in one[first:last]]
        else:
            lines += _paired_by_name(one[first:last], other[begin:end])
    return lines


def _paired_by_name(left: list[str], right: list[str]) -> list[Line]:
    """Lines that differ: those of the same member beside each other, and what has no counterpart by itself."""
    names, others = [_member(line) for line in left], [_member(line) for line in right]
    lines: list[Line] = []
    for tag, first, last, begin, end in SequenceMatcher(None, names, others, autojunk=False).get_opcodes():
        if tag == "equal":
            lines += map(Line, left[first:last], right[begin:end])
        else:
            lines += [Line(line, None) for line in left[first:last]]
            lines += [Line(None, line) for line in right[begin:end]]
    return lines


def _member(line: str) -> str:
    """Indent and name of a member; of an element of a list, which has no name, the indent alone."""
    found = _NAME.match(line)
    assert found is not None  # noqa: S101 (it matches every line)
    return found[0]


def _lines(raw: str) -> list[str]:
    # Every number as a decimal, so that none is rounded.
    tree = json.loads(raw, parse_int=Decimal, parse_float=Decimal)
    return msgspec.json.format(_sorted.encode(tree), indent=2).decode().split("\n")
