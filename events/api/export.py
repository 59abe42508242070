"""Events as lines of JSON and as rows of CSV, so that they can be read back exactly.

NDJSON is the exact form: every field as it is stored, one object a line. A CSV that is opened in a spreadsheet must not
run what a publisher wrote, so some texts have an apostrophe in front there; without it they are the stored text again.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Raw, Struct

_encoder = msgspec.json.Encoder()

# Line breaks between the words of a payload.
_NO_LINE_BREAKS = bytes.maketrans(b"\r\n", b"  ")

#: Characters that end a line for many readers (str.splitlines, httpx's iter_lines) and may stand unescaped in JSON, in
#: UTF-8: U+0085, U+2028, U+2029. Bytes beyond ASCII stand in strings only, so an escape means the same everywhere.
_LINE_ENDS = [(character.encode(), rf"\u{ord(character):04x}".encode()) for character in "\u0085\u2028\u2029"]

#: What a spreadsheet takes for a formula (OWASP, CSV Injection), also behind white space and in full width, which
#: Japanese and Chinese versions read as the common character.
_FORMULA = re.compile(r"[\s\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")


def ndjson(events: Sequence[Any]) -> bytes:
    """One JSON object a line. Line breaks in a payload, which are no part of its strings, become spaces."""
    for event in events:
        event.payload = _on_one_line(event.payload)
    text = _encoder.encode_lines(events)
    for character, escape in _LINE_ENDS:
        text = text.replace(character, escape)
    return text


def _on_one_line(payload: Raw) -> Raw:
    text = bytes(payload)
    return Raw(text.translate(_NO_LINE_BREAKS)) if b"\n" in text or b"\r" in text else payload


def csv_header(columns: type[Struct]) -> bytes:
    """The row with the names of the columns."""
    return ",".join(columns.__struct_fields__).encode() + b"\r\n"


def csv_rows(events: Iterable[Struct]) -> bytes:
    """One row an event (RFC 4180), all texts in quotes.

    csv.writer keeps four bytes a character of a row: 80 MiB of a payload of 10.
    """
    rows: list[bytes] = []
    for event in events:
        for name in event.__struct_fields__:
            rows += (_cell(getattr(event, name)), b",")
        rows[-1] = b"\r\n"
    return b"".join(rows)


def _cell(value: Any) -> bytes:
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, datetime):
        return str(msgspec.to_builtins(value)).encode()
    # A payload begins with a brace.
    text = bytes(value) if isinstance(value, Raw) else inert(value).encode()
    return b'"' + text.replace(b'"', b'""') + b'"'


def inert(text: str) -> str:
    """The text as a spreadsheet shows and does not run it.

    One more apostrophe in front of what would be a formula, and of what begins with one already: to take exactly one
    away from a cell that begins with it gives back the text, whatever it was.
    """
    return f"'{text}" if text.startswith("'") or _FORMULA.match(text) else text
