"""GET /events: stored events, a page at a time in both directions, or all of them as a stream."""

import csv
import io
import re
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.conf import settings
from django.db.models import F, QuerySet, Sum
from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.utils import extend_schema
from msgspec import Raw, Struct
from rest_framework.exceptions import PermissionDenied, ValidationError
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from events import horizon
from events.api import schema
from events.api.doors import GuardedView, key_of
from events.api.json import JSONRenderer
from events.keys import visible_topics
from events.models import ApiKey, Event, Pruned, TopicTotal
from events.timestamps import parse_timestamp

#: Events on a page, unless asked for otherwise, and at most.
PAGE = 100
LARGEST_PAGE = 1000
#: Bytes of payloads after which a page or a slice ends early; and rows read at a time until then.
LARGEST_BYTES = 4 * 1024 * 1024
ROWS_READ = 100
#: Bytes that a stream sends at a time: what a reader has to take in the time that a stalled one is given.
PIECE = 256 * 1024
#: Rows a stream holds in memory at a time. Each slice is a statement of its own: one long one would keep SQLite from
#: shortening its write-ahead log for as long as the reader takes.
SLICE = 2000

_TEXT_FILTERS = ("topic", "source", "event_id")
_PARAMETERS = (*_TEXT_FILTERS, "batch_id", "since", "until", "limit", "cursor")


class StoredEvent(Struct):
    """An event as it is stored."""

    id: int
    topic: str
    event_id: str
    source: str
    timestamp: datetime
    payload: Raw
    received_at: datetime
    batch_id: int


class Cursor(Struct, array_like=True):
    """A place between two events: after the one that it names, or before it."""

    backwards: bool
    id: int
    received_at: datetime | None = None

    def encode(self) -> str:
        return urlsafe_b64encode(msgspec.json.encode(self)).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str) -> "Cursor":
        try:
            cursor = msgspec.json.decode(urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=cls)
            # Ours are in UTC; with another offset it may be a moment that no database holds.
            if cursor.received_at and cursor.received_at.utcoffset() != timedelta(0):
                raise ValueError
            return cursor
        except ValueError:
            raise ValidationError(
                {"detail": "cursor is not one of ours: use the links in next and previous."}
            ) from None


@dataclass(slots=True)
class Query:
    """What GET /events was asked for."""

    equal: dict[str, Any] = field(default_factory=dict)
    since: datetime | None = None
    until: datetime | None = None
    limit: int = PAGE
    cursor: Cursor | None = None
    #: Bound to topics, and so are the events that it may see.
    key: ApiKey | None = None

    @property
    def by_time(self) -> bool:
        """Whether events come in the order they were accepted. Otherwise it is the order they were stored in.

        The order of storing never changes behind a reader's back; an event accepted early may be stored late. But only
        the order of acceptance lets an index serve a window of time.
        """
        return self.since is not None or self.until is not None

    def matches(self, *, after: int = 0) -> QuerySet[Event]:
        """The events that match and are listed, beyond the id `after`."""
        found = Event.objects.filter(**self.equal)
        # One condition for both: of two on the same column, SQLite seeks by one, and reads all rows up to the other.
        if beyond := max(after, Pruned.objects.listed_after()):
            found = found.filter(id__gt=beyond)
        if "event_id" in self.equal and "topic" not in self.equal:
            # The index of the key starts with the topic: look the id up under each, instead of keeping another index.
            found = found.filter(topic__in=TopicTotal.objects.values("topic"))
        if self.key:
            found = found.filter(topic__in=visible_topics(self.key).values("topic"))
        if self.since:
            found = found.filter(received_at__gte=self.since)
        if self.until:
            found = found.filter(received_at__lt=self.until)
        return found

    def count(self) -> int:
        """How many events match; read from the books where they know it."""
        if not self.by_time and self.equal.keys() <= {"topic"}:
            totals = visible_topics(self.key) if self.key else TopicTotal.objects.all()
            listed = Sum(F("unique") - F("expired"))
            return totals.filter(**self.equal).aggregate(total=listed)["total"] or 0
        return self.matches().count()

    def after(self, cursor: Cursor | None, size: int) -> tuple[list[StoredEvent], bool]:
        """The next events after the cursor, or before it where it points backwards; in ascending order either way.

        Also whether they were cut short, because so few have LARGEST_BYTES already.
        """
        backwards = cursor is not None and cursor.backwards
        seek = cursor is not None and not backwards and not self.by_time
        # First, see there. In the order of acceptance events may appear anywhere, whatever the database.
        settled = None if self.by_time else horizon.settled()
        found = self.matches(after=cursor.id if cursor and seek else 0)
        if settled is not None:
            found = found.filter(id__lte=settled)
        if cursor and not seek:
            up_to = "lte" if backwards else "gte"
            if self.by_time:
                same_moment = {"received_at": cursor.received_at, f"id__{'gte' if backwards else 'lte'}": cursor.id}
                found = found.filter(**{f"received_at__{up_to}": cursor.received_at}).exclude(**same_moment)
            else:
                found = found.filter(id__lt=cursor.id)
        order = ["received_at", "id"] if self.by_time else ["id"]
        found = found.order_by(*(f"-{name}" if backwards else name for name in order))
        columns = found.values_list(
            "id", "topic", "event_id", "source", "timestamp", "payload", "received_at", "batch_id"
        )
        events: list[StoredEvent] = []
        weight = 0
        for pk, topic, event_id, source, timestamp, payload, received_at, batch_id in columns[:size].iterator(
            ROWS_READ
        ):
            raw = payload.encode()
            events.append(StoredEvent(pk, topic, event_id, source, timestamp, Raw(raw), received_at, batch_id))
            weight += len(raw)
            if weight > LARGEST_BYTES:
                break
        return (events[::-1] if backwards else events), weight > LARGEST_BYTES

    def place(self, event: StoredEvent, *, backwards: bool = False) -> Cursor:
        return Cursor(backwards, event.id, event.received_at if self.by_time else None)

    def page(self) -> tuple[list[StoredEvent], Cursor | None, Cursor | None]:
        """The events of the page, and the cursors to the next and to the previous one where there is one."""
        backwards = self.cursor is not None and self.cursor.backwards
        events, more = self.after(self.cursor, self.limit + 1)
        if len(events) > self.limit:
            more = True
            events = events[1:] if backwards else events[: self.limit]
        if not events:
            return [], None, None
        following = more or backwards
        preceding = more if backwards else self.cursor is not None
        return (
            events,
            self.place(events[-1]) if following else None,
            self.place(events[0], backwards=True) if preceding else None,
        )

    def slices(self) -> Iterator[list[StoredEvent]]:
        """Every match, in slices of bounded size; limit and cursor are for pages."""
        cursor: Cursor | None = None
        while events := self.after(cursor, SLICE)[0]:
            yield events
            cursor = self.place(events[-1])


def read_query(parameters: Mapping[str, str]) -> Query:
    """Reads the query string.

    Raises:
        ValidationError: a parameter is unknown or wrong; says which and what it should be.
    """
    for name in parameters:
        if name not in _PARAMETERS:
            raise ValidationError({"detail": f"{name} is not a parameter; there are {', '.join(_PARAMETERS)}."})
    query = Query(equal={name: parameters[name] for name in _TEXT_FILTERS if name in parameters})
    for name, text in query.equal.items():
        if "\x00" in text:
            raise ValidationError({"detail": f"{name} must not contain U+0000; no stored event does."})
    if "batch_id" in parameters:
        query.equal["batch_id"] = _whole("batch_id", parameters["batch_id"], 1, 2**63 - 1)
    if "limit" in parameters:
        query.limit = _whole("limit", parameters["limit"], 1, LARGEST_PAGE)
    query.since, query.until = _moment(parameters, "since"), _moment(parameters, "until")
    if "cursor" in parameters:
        query.cursor = Cursor.decode(parameters["cursor"])
        if query.by_time != (query.cursor.received_at is not None) or abs(query.cursor.id) >= 2**63:
            raise ValidationError({"detail": "cursor is of a query with other filters: follow the links as they are."})
    return query


def _whole(name: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise ValidationError({"detail": f"{name} must be a whole number from {least} to {most}."})
    return int(text)


def _moment(parameters: Mapping[str, str], name: str) -> datetime | None:
    if name not in parameters:
        return None
    # An offset's plus sign, left unescaped in a URL, arrives as a space; what stands before it is longer than a date.
    text = re.sub(r"(.{11}) (\d\d(?::?\d\d)?)$", r"\1+\2", parameters[name])
    try:
        return parse_timestamp(text)
    except ValueError as error:
        raise ValidationError({"detail": f"{name}: {error}; send one like 2025-10-21T14:30:00Z."}) from None


class NDJSONRenderer(BaseRenderer):
    """Chosen with Accept: application/x-ndjson; the view streams."""

    media_type = "application/x-ndjson"
    format = "ndjson"
    charset: str | None = None

    def render(self, data: Any, accepted_media_type: Any = None, renderer_context: Any = None) -> bytes:
        # Only errors come here.
        return JSONRenderer().render(data) + b"\n"


class CSVRenderer(NDJSONRenderer):
    """Chosen with Accept: text/csv; the view streams."""

    media_type = "text/csv"
    format = "csv"
    charset = "utf-8"


class EventsView(GuardedView):
    """List stored events, oldest first."""

    renderer_classes = [JSONRenderer, NDJSONRenderer, CSVRenderer]

    @extend_schema(**schema.EVENTS)
    def get(self, request: Request) -> HttpResponseBase:
        query = read_query(request.query_params.dict())
        _bind(query, key_of(request))
        # Of the answer to a HEAD only the head is sent; gunicorn would read all of the rest.
        head = request.method == "HEAD"
        if request.accepted_renderer.format == "ndjson":
            return _stream(iter(()) if head else ndjson(query), "application/x-ndjson", "events.ndjson")
        if request.accepted_renderer.format == "csv":
            return _stream(iter(()) if head else comma_separated(query), "text/csv; charset=utf-8", "events.csv")
        events, following, preceding = query.page()
        return Response(
            {
                "count": query.count(),
                "next": _link(request, following),
                "previous": _link(request, preceding),
                "events": events,
            }
        )


def _bind(query: Query, key: ApiKey | None) -> None:
    if key and key.topics:
        if "topic" in query.equal and not key.opens(query.equal["topic"]):
            raise PermissionDenied(f"This API key opens topics that begin with {' or '.join(key.topics)}.")
        query.key = key


def _link(request: Request, cursor: Cursor | None) -> str | None:
    if cursor is None:
        return None
    parameters = request.query_params.copy()
    parameters["cursor"] = cursor.encode()
    return request.build_absolute_uri(f"{request.path}?{parameters.urlencode()}")


#: Half the threads of a process may stream, so that readers who take their time leave the rest to publishers.
_streams = threading.BoundedSemaphore(max(1, settings.WEB_THREADS // 2))


class TooManyStreams(Exception):
    """As many streams are open as may be; try again when one is over."""


class Stream:
    """The chunks of a stream. It gives its place back when it is over, or given up by the one who reads it.

    Raises:
        TooManyStreams: there is no place.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._places = _streams
        self._open = self._places.acquire(blocking=False)
        if not self._open:
            raise TooManyStreams
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            for begin in range(0, len(chunk), PIECE):
                yield chunk[begin : begin + PIECE]

    def close(self) -> None:
        if self._open:
            self._open = False
            self._places.release()

    # An answer that nobody begins to send is not closed either.
    __del__ = close


def _stream(chunks: Iterator[bytes], content_type: str, name: str) -> StreamingHttpResponse:
    return StreamingHttpResponse(
        Stream(chunks), content_type=content_type, headers={"Content-Disposition": f'inline; filename="{name}"'}
    )


_NO_LINE_BREAKS = bytes.maketrans(b"\r\n", b"  ")


def ndjson(query: Query) -> Iterator[bytes]:
    """Every match as one JSON object a line: line breaks in a payload, which mean nothing there, become spaces."""
    encoder = msgspec.json.Encoder()
    for events in query.slices():
        for event in events:
            event.payload = Raw(bytes(event.payload).translate(_NO_LINE_BREAKS))
        yield encoder.encode_lines(events)


def comma_separated(query: Query) -> Iterator[bytes]:
    """Every match as a row (RFC 4180). Text that a spreadsheet would run as a formula gets an apostrophe in front."""
    yield _rows([list(StoredEvent.__struct_fields__)])
    for events in query.slices():
        yield _rows([[_cell(getattr(event, name)) for name in StoredEvent.__struct_fields__] for event in events])


def _rows(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return msgspec.to_builtins(value)
    text = bytes(value).decode() if isinstance(value, Raw) else value
    # What a spreadsheet shows and does not run (OWASP, CSV injection).
    return f"'{text}" if isinstance(text, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
