"""Reads the body of a publish within its limits: what of it is JSON, decompressed, for events/wire.py to decode."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from rest_framework.exceptions import APIException, UnsupportedMediaType, ValidationError
from rest_framework.parsers import BaseParser
from rest_framework.request import Request

from events import wire
from events.api.content_coding import CODINGS, BrokenStream, UnknownCoding, coding_of, decompress
from events.memory import LARGE_BYTES, one_large_at_a_time

#: Seconds that a large body waits for its turn: longer than a few of them take, shorter than a client waits.
TURN_SECONDS = 10.0

#: How each media type is decoded.
_DECODERS = {"application/json": wire.decode, "application/x-ndjson": wire.decode_lines}
_FOREIGN_CHARSET = re.compile(r"charset=(?!\"?(utf-?8|us-ascii)\b)", re.IGNORECASE)


class BodyTooLarge(APIException):
    """413: the body is larger than the limit."""

    status_code = 413


class UnsupportedBody(UnsupportedMediaType):
    """415: the headers of the body say that it is something else than JSON.

    Attributes:
        headers: say what would be taken (RFC 9110 section 15.5.16).
    """

    def __init__(self, detail: str, headers: Mapping[str, str]) -> None:
        super().__init__("", detail)
        self.headers = headers


@dataclass(slots=True)
class Body:
    """A body as it was sent."""

    sent: bytes
    media_type: str
    coding: str


class BodyParser(BaseParser):
    """Reads a body that may be one of a publish. It takes every type, to refuse the wrong ones in its own words."""

    media_type = "*/*"

    def parse(  # type: ignore[override]  # DRF passes on whatever a parser returns
        self,
        stream: Any,
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Body:
        """Reads the body.

        Raises:
            BodyTooLarge, UnsupportedBody, ValidationError: see their texts.
        """
        limit = settings.PUBLISH_MAX_BYTES
        # Not its headers: they are a copy of all of META, made anew for each request.
        meta = (parser_context or {})["request"].META
        type_ = _supported_type(media_type or "")
        try:
            coding = coding_of(meta.get("HTTP_CONTENT_ENCODING", ""))
        except UnknownCoding as error:
            raise UnsupportedBody(
                f"Content-Encoding: {error}. Send the body as it is, or compressed with gzip or zstd.",
                {"Accept-Encoding": ", ".join(CODINGS)},
            ) from None
        # One byte more than allowed tells a body that is too large, whether or not it gave its length.
        body = b"" if _announced(meta) > limit else _read(stream, limit + 1)
        if _announced(meta) > limit or len(body) > limit:
            raise _too_large()
        if len(body) < _announced(meta):
            # What came of it may well be JSON, but who knows what else was to come.
            raise ValidationError({"detail": "The body ended early: it is shorter than its Content-Length."})
        # DRF's request and response hold each other, and what they hold, until the garbage collector comes by.
        stream._stream = meta["wsgi.input"] = BytesIO()
        return Body(body, type_, coding)


@contextmanager
def published_events(request: Request) -> Iterator[list[wire.Event]]:
    """The events of a publish, for as long as they are needed.

    Of the large ones a process works on one at a time, from its decoding until it is on disk.

    Raises:
        BodyTooLarge, UnsupportedBody, ValidationError, events.wire.Refused, events.wire.TooMany: see their texts.
        events.memory.Busy: its turn did not come in time.
    """
    given: Any = request.data
    # DRF does not ask the parser about an empty body.
    body = given if isinstance(given, Body) else Body(b"", "application/json", "identity")
    try:
        plain = _plain(body, limit=min(LARGE_BYTES, settings.PUBLISH_MAX_BYTES))
        if plain is not None:
            yield _decode(plain, body.media_type)
            return
        with one_large_at_a_time(LARGE_BYTES, timeout=TURN_SECONDS):
            plain = _plain(body, limit=settings.PUBLISH_MAX_BYTES)
            if plain is None:
                raise _too_large()
            yield _decode(plain, body.media_type)
    finally:
        body.sent = b""


def _supported_type(content_type: str) -> str:
    type_ = content_type.partition(";")[0].strip().lower()
    if type_ not in _DECODERS:
        given = f"Content-Type {content_type[:100]} is not supported" if type_ else "There is no Content-Type"
        raise UnsupportedBody(
            f"{given}: send the header Content-Type: application/json, or application/x-ndjson for one event a line.",
            {"Accept": ", ".join(_DECODERS)},
        )
    if _FOREIGN_CHARSET.search(content_type):
        raise UnsupportedBody(f"{content_type[:100]} is not supported: send JSON in UTF-8.", {"Accept": type_})
    return type_


def _plain(body: Body, *, limit: int) -> bytes | None:
    try:
        return decompress(body.sent, body.coding, limit=limit)
    except BrokenStream as error:
        raise ValidationError({"detail": f"The body {error}."}) from None


def _decode(plain: bytes, media_type: str) -> list[wire.Event]:
    return _DECODERS[media_type](plain, max_events=settings.PUBLISH_MAX_EVENTS)


def _too_large() -> BodyTooLarge:
    limit = settings.PUBLISH_MAX_BYTES
    return BodyTooLarge(f"The body is larger than {limit} bytes: send fewer events in one publish.")


def _announced(meta: Mapping[str, str]) -> int:
    if meta.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
        return 0
    return int(meta.get("CONTENT_LENGTH") or 0)


def _read(stream: HttpRequest, limit: int) -> bytes:
    try:
        return stream.read(limit)
    except Exception as error:
        # gunicorn and Django each raise their own kinds for a connection that broke off or a chunk that is none.
        raise ValidationError({"detail": f"The body ended early: {error}"}) from error
