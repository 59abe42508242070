"""GET /events: stored events, a page at a time in both directions, or all as a stream. /events/{id}: one of them."""

import errno
import re
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.conf import settings
from django.db import connection
from django.db.models import F, QuerySet, Sum
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from drf_spectacular.utils import extend_schema
from msgspec import UNSET, Raw, Struct, UnsetType
from rest_framework.exceptions import NotFound, PermissionDenied, ValidationError
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from events import horizon, keys, payload_search
from events.api import schema
from events.api.doors import GuardedView, key_of
from events.api.export import csv_header, csv_rows, ndjson
from events.api.json import JSONRenderer
from events.api.parameters import read_parameters
from events.erasure import erase
from events.keys import visible_topics
from events.memory import one_large_at_a_time
from events.models import ApiKey, Erasure, Event, Pruned, TopicTotal
from events.payload_search import PREFIX, Condition, InvalidCondition, Key
from events.payloads import read_payloads
from events.timestamps import parse_timestamp

#: Events on a page, unless asked for otherwise, and at most.
PAGE = 100
LARGEST_PAGE = 1000
#: Bytes of payloads that a page or a slice of a stream has at most, unless its only event has more.
LARGEST_BYTES = 4 * 1024 * 1024
#: Bytes that a stream sends at a time: what a reader has to take in the time that a stalled one is given.
PIECE = 256 * 1024
#: Rows a stream holds in memory at a time. Each slice is a statement of its own: one long one would keep SQLite from
#: shortening its write-ahead log for as long as the reader takes.
SLICE = 2000
#: Places of events that a search by payload reads at a time. Where the database has to sort to find the next ones, it
#: does so once for these.
SEARCH_SLICE = 5_000
#: Seconds after which a stream asks again whether its reader may have it.
ASKED_EVERY_SECONDS = 5.0

_TEXT_FILTERS = ("topic", "source", "event_id")
_PARAMETERS = (*_TEXT_FILTERS, "batch_id", "since", "until", "order", "limit", "cursor")

_COLUMNS = ("id", "topic", "event_id", "source", "timestamp", "received_at", "batch_id")


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


class OneEvent(StoredEvent):
    """An event as its own address shows it: one whose payload was erased says when."""

    erased_at: datetime | UnsetType = UNSET


class Cursor(Struct, array_like=True):
    """A place between two events: after the one that it names, or before it."""

    backwards: bool
    id: int
    received_at: datetime | None = None
    descending: bool = False

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
    descending: bool = False
    #: Values in the payload, all of which it must have.
    conditions: Sequence[Condition] = ()
    #: Bound to topics, and so are the events that it may see.
    key: ApiKey | None = None
    _scanned: Sequence[Condition] | None = None

    @property
    def by_time(self) -> bool:
        """Whether events come in the order they were accepted. Otherwise it is the order they were stored in.

        The order of storing never changes behind a reader's back; an event accepted early may be stored late. But only
        the order of acceptance lets an index serve a window of time.
        """
        return self.since is not None or self.until is not None

    @property
    def scanned(self) -> Sequence[Condition]:
        """Those of the conditions that no index serves, so that payloads have to be read one after the other."""
        if self._scanned is None:
            self._scanned = [condition for condition in self.conditions if not condition.is_indexed]
        return self._scanned

    def matches(self, *, after: int = 0) -> QuerySet[Event]:
        """The events that are listed and match all but the conditions in `scanned`, beyond the id `after`."""
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
        if indexed := [condition.expression for condition in self.conditions if condition not in self.scanned]:
            if connection.vendor == "sqlite" and (self.equal or self.by_time):
                # Beside another filter SQLite would go by that one's index, and read the payload of all that it finds.
                found = found.filter(pk__in=Event.objects.filter(*indexed).values("pk"))
            else:
                found = found.filter(*indexed)
        return found

    def count(self) -> int | None:
        """How many events match; read from the books where they know it. None where it would read every payload."""
        if self.scanned:
            return None
        if not self.by_time and not self.conditions and self.equal.keys() <= {"topic"}:
            totals = visible_topics(self.key) if self.key else TopicTotal.objects.all()
            listed = Sum(F("unique") - F("expired"))
            return totals.filter(**self.equal).aggregate(total=listed)["total"] or 0
        return self.matches().count()

    def following(self, cursor: Cursor | None) -> QuerySet[Event]:
        """What matches() gives after the cursor, or before it where it points backwards; the nearest first."""
        backwards = cursor is not None and cursor.backwards
        falling = backwards != self.descending
        seek = cursor is not None and not falling and not self.by_time
        # First, see there. In the order of acceptance events may appear anywhere, whatever the database.
        settled = None if self.by_time else horizon.settled()
        found = self.matches(after=cursor.id if cursor and seek else 0)
        if settled is not None:
            found = found.filter(id__lte=settled)
        if cursor and not seek:
            up_to = "lte" if falling else "gte"
            if self.by_time:
                same_moment = {"received_at": cursor.received_at, f"id__{'gte' if falling else 'lte'}": cursor.id}
                found = found.filter(**{f"received_at__{up_to}": cursor.received_at}).exclude(**same_moment)
            else:
                found = found.filter(id__lt=cursor.id)
        order = ["received_at", "id"] if self.by_time else ["id"]
        return found.order_by(*(f"-{name}" if falling else name for name in order))

    def after(self, cursor: Cursor | None, size: int) -> "Part":
        """The next events after the cursor, or before it where it points backwards; in the query's order either way.

        Args:
            cursor: None is the beginning.
            size: events at most. They are fewer where their payloads would exceed LARGEST_BYTES, or where searching
                took too long.
        """
        backwards = cursor is not None and cursor.backwards
        if self.scanned:
            looked = payload_search.search(self._candidates(cursor), self.scanned, enough=size)
            found = {row[0]: row for row in Event.objects.filter(pk__in=looked.found).values_list(*_COLUMNS)}
            rows = [found[pk] for pk in looked.found if pk in found]
            first, last, more, in_time = looked.first, looked.last, looked.more, looked.in_time
        else:
            ahead = list(self.following(cursor).values_list(*_COLUMNS)[: size + 1])
            rows, more, in_time = ahead[:size], len(ahead) > size, True
            first, last = ((row[0], row[5]) for row in (rows[0], rows[-1])) if rows else (None, None)
        payloads, cut = read_payloads([row[0] for row in rows], most=LARGEST_BYTES)
        events: list[StoredEvent] = []
        for pk, topic, event_id, source, timestamp, received_at, batch_id in rows:
            payload = payloads.get(pk)
            if payload:
                events.append(StoredEvent(pk, topic, event_id, source, timestamp, Raw(payload), received_at, batch_id))
            elif cut:
                break
        if rows and not events:
            # Retention has taken all of them since the rows were read: see what is left.
            return self.after(cursor, size)
        if cut:
            more, in_time, last = True, True, (events[-1].id, events[-1].received_at)
        return Part(events[::-1] if backwards else events, more, first, last, in_time)

    def _candidates(self, cursor: Cursor | None) -> Iterator[Key]:
        """The places of what following() gives, read as far as it is asked for."""
        backwards = cursor is not None and cursor.backwards
        while keys := list(self.following(cursor).values_list("id", "received_at")[:SEARCH_SLICE]):
            yield from keys
            cursor = self.place(keys[-1], backwards=backwards)

    def place(self, key: Key, *, backwards: bool = False) -> Cursor:
        pk, received_at = key
        return Cursor(backwards, pk, received_at if self.by_time else None, self.descending)

    def page(self) -> tuple["Part", Cursor | None, Cursor | None]:
        """The part of the list that the page has, and the cursors to the next and to the previous page."""
        backwards = self.cursor is not None and self.cursor.backwards
        part = self.after(self.cursor, self.limit)
        if part.first is None or part.last is None:
            return part, None, None
        ahead = self.place(part.last, backwards=backwards) if part.more else None
        behind = self.place(part.first, backwards=not backwards) if self.cursor is not None else None
        return (part, behind, ahead) if backwards else (part, ahead, behind)

    def stream(self, encode: Callable[[list[StoredEvent]], bytes]) -> Iterator[bytes]:
        """Every match as `encode` writes it, in chunks of bounded size; limit and cursor are for pages.

        While a chunk is being taken, nothing but the chunk is held.
        """
        cursor: Cursor | None = None
        more = True
        while more:
            part = self.after(cursor, SLICE)
            cursor, more, events = part.last and self.place(part.last), part.more, part.events
            del part
            with one_large_at_a_time(weight(events)):
                # Nothing where a search has found nothing yet, so that the reader's right to it is asked meanwhile.
                chunk = encode(events) if events else b""
            del events
            yield chunk
            del chunk


@dataclass(slots=True)
class Part:
    """What a query has in one direction from a place.

    Attributes:
        events: in the query's order.
        more: whether there are more in that direction, or where it searches, events that were not looked at yet.
        first, last: the first and the last event that was looked at; None where there was none.
        in_time: whether all was looked at that is needed to fill the page.
    """

    events: list[StoredEvent]
    more: bool
    first: Key | None
    last: Key | None
    in_time: bool


def weight(events: list[StoredEvent]) -> int:
    """Bytes of the events' payloads."""
    return sum(len(memoryview(event.payload)) for event in events)


def read_query(parameters: Mapping[str, str]) -> Query:
    """Reads the query string.

    Raises:
        ValidationError: a parameter is wrong; says which and what it should be.
    """
    query = Query(equal={name: parameters[name] for name in _TEXT_FILTERS if name in parameters})
    for name, text in query.equal.items():
        if "\x00" in text:
            raise ValidationError({"detail": f"{name} must not contain U+0000; no stored event does."})
    if "batch_id" in parameters:
        query.equal["batch_id"] = _whole("batch_id", parameters["batch_id"], 1, 2**63 - 1)
    if "limit" in parameters:
        query.limit = _whole("limit", parameters["limit"], 1, LARGEST_PAGE)
    query.since, query.until = _moment(parameters, "since"), _moment(parameters, "until")
    try:
        query.conditions = payload_search.read_conditions(parameters)
    except InvalidCondition as error:
        raise ValidationError({"detail": str(error)}) from None
    order = parameters.get("order", "asc")
    if order not in ("asc", "desc"):
        raise ValidationError({"detail": "order must be asc (oldest first) or desc (newest first)."})
    query.descending = order == "desc"
    if "cursor" in parameters:
        query.cursor = Cursor.decode(parameters["cursor"])
        if query.by_time != (query.cursor.received_at is not None) or abs(query.cursor.id) >= 2**63:
            raise ValidationError({"detail": "cursor is of a query with other filters: follow the links as they are."})
        if query.cursor.descending != query.descending:
            theirs = "desc" if query.cursor.descending else "asc"
            raise ValidationError(
                {"detail": f"cursor is of a list with order={theirs}: follow the links as they are, or begin anew."}
            )
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
    """List stored events."""

    renderer_classes = [JSONRenderer, NDJSONRenderer, CSVRenderer]

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response: HttpResponseBase = super().dispatch(request, *args, **kwargs)
        # DRF's view and request refer to each other, so both stay until the collector comes: not with this answer.
        del self.response
        return response

    @extend_schema(**schema.EVENTS)
    def get(self, request: Request) -> HttpResponseBase:
        query = read_query(read_parameters(request.query_params, _PARAMETERS, beginning=PREFIX))
        key = key_of(request)
        _bind(query, key)
        if request.accepted_renderer.format in EXPORTS:
            return export(
                query,
                request.accepted_renderer.format,
                head=request.method == "HEAD",
                may_go_on=lambda: key is None or keys.is_valid(key),
            )
        part, following, preceding = query.page()
        page: dict[str, Any] = {
            "count": query.count(),
            "next": _link(request, following),
            "previous": _link(request, preceding),
            "events": part.events,
        }
        if query.conditions:
            page["search"] = {
                "indexed": not query.scanned,
                "complete": part.in_time,
                "hint": payload_search.hint(query.scanned) or None,
            }
        # Not DRF's Response, which would keep the events beside their text until the client has taken it.
        with one_large_at_a_time(weight(part.events)):
            return HttpResponse(JSONRenderer().render(page), content_type=JSONRenderer.media_type)


class EventView(GuardedView):
    """Show one event, or erase what it says."""

    # Whoever can reach the port may not destroy data.
    always: Mapping[str, str] = {"DELETE": "erase"}

    @extend_schema(**schema.EVENT)
    def get(self, request: Request, number: int) -> HttpResponse:
        read_parameters(request.query_params)
        event = _visible(request, number)
        payload = read_payloads([number], most=LARGEST_BYTES)[0].get(number)
        if not payload:
            # Retention has taken it meanwhile.
            raise _no_event(number)
        erased = Erasure.objects.filter(topic=event.topic, event_id=event.event_id).values_list("erased_at", flat=True)
        shown = OneEvent(
            event.pk,
            event.topic,
            event.event_id,
            event.source,
            event.timestamp,
            Raw(payload),
            event.received_at,
            event.batch_id,
            erased.first() or UNSET,
        )
        with one_large_at_a_time(len(payload)):
            return HttpResponse(JSONRenderer().render(shown), content_type=JSONRenderer.media_type)

    @extend_schema(**schema.ERASE)
    def delete(self, request: Request, number: int) -> Response:
        read_parameters(request.query_params)
        event = _visible(request, number)
        key: Any = key_of(request)
        done = erase(event.topic, event.event_id, by=f"API key {key.name} ({key.prefix})")
        if done.unreadable:
            numbers = ", ".join(map(str, done.unreadable))
            return Response(
                {"detail": f"These batches cannot be read and may hold the event; all else is erased: {numbers}."},
                status=409,
            )
        return Response(status=204)


def _visible(request: Request, number: int) -> Event:
    """The event with this number, without its payload, if it is listed and the key opens its topic.

    Raises:
        NotFound: it is not.
    """
    event = Query().matches().filter(pk=number).defer("payload").first() if number < 2**63 else None
    key = key_of(request)
    # One that is not for this key is as none.
    if event is None or (key and not key.opens(event.topic)):
        raise _no_event(number)
    return event


def _no_event(number: int) -> NotFound:
    return NotFound(f"There is no event {number}, or retention has removed it.")


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


class NoLongerAllowed(ConnectionAbortedError):
    """Whoever reads a stream may not any more. The connection is cut, so that nobody takes what came for all of it."""

    def __init__(self) -> None:
        # Of this errno the web server makes no error in the log.
        super().__init__(errno.ECONNRESET, "the reader's rights were taken away")


class Stream:
    """The chunks of a stream. It gives its place back when it is over, or given up by the one who reads it.

    Args:
        chunks: what is sent, in pieces of PIECE bytes.
        may_go_on: whether the reader still has the right to it; asked every ASKED_EVERY_SECONDS.

    Raises:
        TooManyStreams: there is no place.
    """

    def __init__(self, chunks: Iterator[bytes], may_go_on: Callable[[], bool]) -> None:
        self._places = _streams
        self._open = self._places.acquire(blocking=False)
        if not self._open:
            raise TooManyStreams
        self._chunks = chunks
        self._may_go_on = may_go_on

    def __iter__(self) -> Iterator[bytes]:
        asked_at = time.monotonic()
        for chunk in self._chunks:
            # Also once for an empty one, which is not sent: a server may take it for the end.
            for begin in range(0, len(chunk) or 1, PIECE):
                if time.monotonic() - asked_at >= ASKED_EVERY_SECONDS:
                    if not self._may_go_on():
                        raise NoLongerAllowed
                    asked_at = time.monotonic()
                if chunk:
                    yield chunk[begin : begin + PIECE]
            # Or it would be held while the next one is made.
            del chunk

    def close(self) -> None:
        if self._open:
            self._open = False
            self._places.release()

    # An answer that nobody begins to send is not closed either.
    __del__ = close


def _comma_separated(query: Query) -> Iterator[bytes]:
    yield csv_header(StoredEvent)
    yield from query.stream(csv_rows)


#: The forms in which every match is streamed: how it is written, and its media type.
EXPORTS: dict[str, tuple[Callable[[Query], Iterator[bytes]], str]] = {
    "ndjson": (lambda query: query.stream(ndjson), "application/x-ndjson"),
    "csv": (_comma_separated, "text/csv; charset=utf-8"),
}


def export(
    query: Query, form: str, *, head: bool, may_go_on: Callable[[], bool], disposition: str = "inline"
) -> StreamingHttpResponse:
    """Every match, written while it is read.

    Args:
        query: what is asked for; without its limit and cursor.
        form: one of EXPORTS.
        head: whether only the head will be sent. gunicorn would read all of the rest.
        may_go_on: see Stream.
        disposition: "inline" or "attachment".

    Raises:
        TooManyStreams: as many are open as may be.
    """
    write, content_type = EXPORTS[form]
    return stream(
        iter(()) if head else write(query), content_type, f'{disposition}; filename="events.{form}"', may_go_on
    )


def stream(
    chunks: Iterator[bytes], content_type: str, disposition: str, may_go_on: Callable[[], bool]
) -> StreamingHttpResponse:
    """An answer in pieces, which has one of the process's places for streams as long as it is read."""
    return StreamingHttpResponse(
        Stream(chunks, may_go_on), content_type=content_type, headers={"Content-Disposition": disposition}
    )
