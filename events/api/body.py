"""Reads the body of a publish within its limits and gives it to events/wire.py."""

import re
from collections.abc import Mapping
from typing import IO, Any

from django.conf import settings
from rest_framework.exceptions import APIException, UnsupportedMediaType, ValidationError
from rest_framework.parsers import BaseParser

from events import wire

_FOREIGN_CHARSET = re.compile(r"charset=(?!\"?(utf-?8|us-ascii)\b)", re.IGNORECASE)


class BodyTooLarge(APIException):
    """413: the body is larger than the limit."""

    status_code = 413


class EventsParser(BaseParser):
    """Turns a JSON body into events with events/wire.py."""

    media_type = "application/json"

    def parse(  # type: ignore[override]  # DRF passes on whatever a parser returns
        self,
        stream: IO[bytes],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> list[wire.Event]:
        """Reads and decodes the body.

        Raises:
            BodyTooLarge, UnsupportedMediaType, events.wire.Refused, events.wire.TooMany: see their texts.
        """
        limit = settings.PUBLISH_MAX_BYTES
        # Not its headers: they are a copy of all of META, made anew for each request.
        meta = (parser_context or {})["request"].META
        if meta.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
            raise UnsupportedMediaType("", "Content-Encoding is not supported: send the JSON as it is.")
        if _FOREIGN_CHARSET.search(media_type or ""):
            raise UnsupportedMediaType("", f"{media_type} is not supported: send JSON in UTF-8.")
        # One byte more than allowed tells a body that is too large, whether or not it gave its length.
        body = b"" if _announced(meta) > limit else _read(stream, limit + 1)
        if _announced(meta) > limit or len(body) > limit:
            raise BodyTooLarge(f"The body is larger than {limit} bytes: send fewer events in one publish.")
        if len(body) < _announced(meta):
            # What came of it may well be JSON, but who knows what else was to come.
            raise ValidationError({"detail": "The body ended early: it is shorter than its Content-Length."})
        return wire.decode(body, max_events=settings.PUBLISH_MAX_EVENTS)


def _announced(meta: Mapping[str, str]) -> int:
    if meta.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
        return 0
    return int(meta.get("CONTENT_LENGTH") or 0)


def _read(stream: IO[bytes], limit: int) -> bytes:
    try:
        return stream.read(limit)
    except Exception as error:
        # gunicorn and Django each raise their own kinds for a connection that broke off or a chunk that is none.
        raise ValidationError({"detail": f"The body ended early: {error}"}) from error
