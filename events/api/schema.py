"""What /schema and /docs say of each call. The types come from the msgspec structs that do the work."""

from typing import Any

import msgspec
from django.conf import settings
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse

from events import wire

_REF = "#/components/schemas/{name}"


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(name=name)}


def add_types(result: dict[str, Any], generator: Any, request: Any, public: Any) -> dict[str, Any]:
    """drf-spectacular's post-processing hook: adds our types to the document."""
    from events.api.batches import Receipt
    from events.api.events import OneEvent, StoredEvent

    ours = [wire.Event, wire.Problem, StoredEvent, OneEvent, Receipt]
    _, types = msgspec.json.schema_components(ours, ref_template=_REF)
    payload = types["Event"]["properties"]["payload"]
    for name in ("StoredEvent", "OneEvent"):
        types[name]["properties"]["payload"] = payload | {
            "type": "object",
            "description": "The payload as it was published; {} if it was erased.",
        }
    types["OneEvent"]["properties"]["erased_at"]["description"] = "When the payload was erased; only there if it was."
    for name in ("id", "received_at", "batch_id"):
        types["Event"]["properties"][name]["description"] = (
            "Ignored, so that events from GET /events can be published again."
        )
    types["Error"] = {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}}
    types["PublishError"] = {
        "type": "object",
        "required": ["detail"],
        "properties": {"detail": {"type": "string"}, "errors": {"type": "array", "items": _ref("Problem")}},
    }
    result.setdefault("components", {}).setdefault("schemas", {}).update(types)
    # drf-spectacular takes the word of a serializer for this, and there is none.
    result["paths"]["/publish"]["post"]["requestBody"]["required"] = True
    return result


class ApiKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # registers itself
    """Where the service requires keys: the button Authorize in /docs, and a lock beside each call."""

    target_class = "events.api.doors.ApiKeyAuthentication"
    name = ["ApiKey", "Bearer", "XApiKey"]

    def get_security_requirement(self, auto_schema: Any) -> list[dict[str, list[Any]]]:
        # Any one of them, and not all of them together.
        return [{name: []} for name in self.name]

    def get_security_definition(self, auto_schema: Any) -> list[dict[str, Any]]:
        made = "The operator creates a key with `manage.py apikey create`."
        return [
            {"type": "apiKey", "in": "header", "name": "Authorization", "description": f"`Api-Key <key>`. {made}"},
            {"type": "http", "scheme": "bearer", "description": f"`Bearer <key>`. {made}"},
            {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": f"`<key>`. {made}"},
        ]


#: What /docs begins with. {service} is the address that the reader came to.
_INTRODUCTION = """
Takes events over HTTP, stores each event once, drops and counts the duplicates, and never loses an event that it has
accepted. Two events are the same when `topic` and `event_id` are equal. The first one is kept as it was sent.

**Start here.** Run this command twice. First the event is stored; then it is dropped as a duplicate.

```sh
curl {service}/publish \\
  -H 'Content-Type: application/json'{key} \\
  -d '{{"topic": "hello", "event_id": "evt-1", "source": "curl", "payload": {{"n": 1}}}}'
```

**Answers.** `202` means that all events of the publish are on disk. They are stored a moment later; `Location` is the
address of the receipt. After `4xx` nothing was accepted: `detail` says why, and `errors` names each event and field
that is not valid.

**Retry** with the same `event_id` after a lost answer or a timeout, and after `429` or `503` when the seconds of
`Retry-After` are over. A duplicate is dropped and counted, so a retry does no harm.

**Authentication.** {authentication}
"""
_WITH_KEYS = (
    "Every call except `/health` and `/health/ready` needs an API key in the header `Authorization: Api-Key <key>`. "
    "The operator creates a key in the admin or with `manage.py apikey create`. *Authorize* sends the key with the "
    "calls on this page."
)
_WITHOUT_KEYS = "This service requires no API key. With `REQUIRE_API_KEY=true` it does."

_TAGS = {
    "events": "Publish events, and read what is stored.",
    "statistics": "Counters, and the receipts of publishes.",
    "service": "Health, metrics, and the index of addresses.",
}


def introduce(result: dict[str, Any], generator: Any, request: Any, public: Any) -> dict[str, Any]:
    """drf-spectacular's post-processing hook: says what the service is, to a reader who knows nothing of it yet."""
    service = request.build_absolute_uri("/").rstrip("/") if request else "http://127.0.0.1:8080"
    keys = settings.REQUIRE_API_KEY
    result["info"]["description"] = _INTRODUCTION.strip().format(
        service=service,
        key=" \\\n  -H 'Authorization: Api-Key <key>'" if keys else "",
        authentication=_WITH_KEYS if keys else _WITHOUT_KEYS,
    )
    result["tags"] = [{"name": name, "description": description} for name, description in _TAGS.items()]
    return result


def _answer(schema: dict[str, Any], description: str, *examples: OpenApiExample) -> OpenApiResponse:
    return OpenApiResponse(response=schema, description=description, examples=list(examples))


def _error(description: str) -> OpenApiResponse:
    return _answer(_ref("Error"), description)


def _header(name: str, description: str, kind: Any = OpenApiTypes.STR, **more: Any) -> OpenApiParameter:
    return OpenApiParameter(name, kind, OpenApiParameter.HEADER, description=description, **more)


def _query(name: str, description: str, kind: Any = OpenApiTypes.STR) -> OpenApiParameter:
    return OpenApiParameter(name, kind, OpenApiParameter.QUERY, description=description)


_COUNT = {"type": "integer", "minimum": 0}
_LINK = {"type": ["string", "null"], "format": "uri"}

_ONE = {
    "topic": "user.created",
    "event_id": "evt-12345",
    "timestamp": "2025-10-21T14:30:00Z",
    "source": "auth-service",
    "payload": {"user_id": 123, "email": "test@example.com"},
}
_TWO = {"topic": "order.placed", "event_id": "evt-001", "source": "order-service", "payload": {"order_id": 1}}
_LOCATION = _header("Location", "Address of the receipt.", response=[200, 202])
_RETRY = _header("Retry-After", "Seconds to wait before a retry.", OpenApiTypes.INT, response=[429, 503])

#: What any call may answer that needs a key and can be throttled.
_DOORS = {
    401: _error("The API key is missing, unknown or revoked, or there are two different ones."),
    403: _error("The API key does not allow this."),
    429: _error("Too many requests; retry after the seconds in Retry-After."),
}

_NO_PARAMETERS = _error("This address takes no query parameters.")

PUBLISH: dict[str, Any] = {
    "operation_id": "publish",
    "tags": ["events"],
    "summary": "Publish events",
    "description": (
        'The body is one event, an array of events, or `{"events": [...]}` as `application/json`, or one event on each '
        "line as `application/x-ndjson`, in UTF-8. It may be compressed with `Content-Encoding: gzip` or `zstd`. "
        "The answer comes when all events are on disk. If one event is not valid, none is accepted. After an error or "
        "without an answer, publish again: an event that is stored already is dropped and counted as a duplicate."
    ),
    "parameters": [
        _header(
            "Prefer",
            "`wait=N`: wait up to N seconds, N ≤ 30, and answer with the finished receipt (RFC 7240).",
        ),
        _header(
            "Idempotency-Key",
            "A name for this publish. A retry with the same name and body gets the first answer. Names are separate "
            "for each API key.",
            {"type": "string", "minLength": 1, "maxLength": 255},
        ),
        _LOCATION,
        _RETRY,
    ],
    "request": {
        "application/json": {
            "oneOf": [
                _ref("Event"),
                {"type": "array", "items": _ref("Event"), "minItems": 1},
                {
                    "type": "object",
                    "required": ["events"],
                    "additionalProperties": False,
                    "properties": {"events": {"type": "array", "items": _ref("Event"), "minItems": 1}},
                },
            ]
        },
        "application/x-ndjson": _ref("Event") | {"description": "One event on each line."},
    },
    "examples": [
        OpenApiExample("one event", _ONE, request_only=True),
        OpenApiExample("an array", [_ONE, _TWO], request_only=True, media_type="application/json"),
        OpenApiExample("an object", {"events": [_ONE, _TWO]}, request_only=True, media_type="application/json"),
    ],
    "responses": {
        202: _answer(
            {
                "type": "object",
                "required": ["status", "received", "queued", "batch_id"],
                "properties": {
                    "status": {"type": "string", "const": "accepted"},
                    "received": _COUNT,
                    "queued": _COUNT,
                    "batch_id": _COUNT,
                },
            },
            "All events are on disk, and are stored in a moment.",
            OpenApiExample("accepted", {"status": "accepted", "received": 2, "queued": 2, "batch_id": 17}),
        ),
        200: _answer(_ref("Receipt"), "The finished receipt, after `Prefer: wait`."),
        400: _answer(
            _ref("PublishError"),
            "The events are not valid; nothing was accepted. `errors` names the events, fields and mistakes.",
        ),
        413: _error("The publish has too many events or bytes."),
        415: _error(
            "The body is neither application/json nor application/x-ndjson, it is not in UTF-8, or its compression is "
            "neither gzip nor zstd. The header Accept or Accept-Encoding names what is accepted."
        ),
        422: _error("The idempotency key belongs to another body."),
        **_DOORS,
        403: _answer(_ref("PublishError"), "The API key may not publish, or not to the topic of one of the events."),
        503: _error("The inbox is full or the database is away; nothing was accepted. See Retry-After."),
    },
}

_PAGE = {
    "type": "object",
    "required": ["count", "next", "previous", "events"],
    "properties": {
        "count": {
            "type": ["integer", "null"],
            "minimum": 0,
            "description": "Matching events on all pages; null for a search by payload without an index.",
        },
        "next": _LINK,
        "previous": _LINK,
        "events": {"type": "array", "items": _ref("StoredEvent")},
        "search": {
            "type": "object",
            "description": "Only for a search by `payload.…`.",
            "required": ["indexed", "complete", "hint"],
            "properties": {
                "indexed": {"type": "boolean", "description": "Whether an index serves the search."},
                "complete": {
                    "type": "boolean",
                    "description": (
                        "False if the time ended before the page was full or the end was reached. More events may "
                        "match: `next` continues the search."
                    ),
                },
                "hint": {"type": ["string", "null"], "description": "How to make the search fast."},
            },
        },
    },
}

EVENTS: dict[str, Any] = {
    "operation_id": "events",
    "tags": ["events"],
    "summary": "List stored events",
    "description": (
        "Returns events oldest first, or newest first with `order=desc`: in the order in which they were stored, or "
        "with `since` or `until` in the order in which they were accepted. Follow `next` and `previous` as they are. A "
        "page ends early when its payloads reach 4 MiB.\n\n"
        "**Follow:** read to the last page, whose `next` is null, without `since` and `until`. Then request it "
        "again: new events are appended, and none is missed. Do not follow with `since` and `until`: an event "
        "that was accepted early may be stored late.\n\n"
        "**Export:** `Accept: application/x-ndjson` or `text/csv` streams all matching events. NDJSON is the exact "
        "form. In CSV, a text that a spreadsheet would run as a formula, or that begins with an apostrophe, gets one "
        "more apostrophe in front.\n\n"
        "**Search by payload:** a parameter that begins with `payload.` searches for a value in the payload: "
        "`payload.user_id=123`, or `payload.user.id=123` for a nested field. `123` finds the number and the text, "
        '`true` and `null` find the constant and the text, `"123"` in quotes finds only the text. All parameters must '
        "match. Without an index (`manage.py index payload.user_id`) a page searches for about a second: it may be "
        "short or empty, and `next` continues behind the last event searched."
    ),
    "parameters": [
        _query("topic", "Only events of this topic."),
        _query("source", "Only events of this source."),
        _query("event_id", "Only events with this id, of any topic."),
        _query(
            "batch_id",
            "Only events that this publish added.",
            {"type": "integer", "minimum": 1, "maximum": 2**63 - 1},
        ),
        _query(
            "since",
            "Only events accepted at this time or later. Not for following.",
            OpenApiTypes.DATETIME,
        ),
        _query("until", "Only events accepted before this time.", OpenApiTypes.DATETIME),
        _query(
            "order",
            "`desc`: newest first. Use a cursor with the order that it came from.",
            {"type": "string", "enum": ["asc", "desc"], "default": "asc"},
        ),
        OpenApiParameter(
            "limit",
            {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
            description="Maximum number of events on a page.",
        ),
        _query("cursor", "A position in the list, from `next` or `previous`. For following."),
    ],
    "responses": {
        (200, "application/json"): _PAGE,
        (200, "application/x-ndjson"): OpenApiResponse(_ref("StoredEvent"), "One event on each line."),
        (200, "text/csv"): OpenApiResponse({"type": "string"}, "One event in each row, with a header."),
        400: _error("A parameter is unknown, wrong or given twice."),
        **_DOORS,
        406: _error("The service has none of the types in Accept."),
        503: _error("The database is away, or too many streams are open. See Retry-After."),
    },
}

_EVENT_404 = _error("There is no such event, the API key does not allow its topic, or retention has deleted it.")

EVENT: dict[str, Any] = {
    "operation_id": "event",
    "tags": ["events"],
    "summary": "Show one event",
    "responses": {
        200: _answer(_ref("OneEvent"), "The event, as in the list."),
        400: _NO_PARAMETERS,
        404: _EVENT_404,
        **_DOORS,
        503: _error("The database is away."),
    },
}

ERASE: dict[str, Any] = {
    "operation_id": "erase_event",
    "tags": ["events"],
    "summary": "Erase the payload of one event",
    "description": (
        "Erases the payload everywhere and for ever: in the event, in its duplicates, and in waiting publishes. "
        "The key stays for ever, so a retry is still a duplicate. The call can be repeated. **It needs an API key with "
        "the scope `erase`, even if the service requires no keys.**"
    ),
    "responses": {
        204: OpenApiResponse(description="The payload is erased."),
        400: _NO_PARAMETERS,
        404: _EVENT_404,
        409: _error("Everything is erased except in dead letters that cannot be read; the answer names them."),
        **_DOORS,
        503: _error("The database is away. What is erased so far stays erased. Retry later."),
    },
}

STATS: dict[str, Any] = {
    "operation_id": "stats",
    "tags": ["statistics"],
    "summary": "Show the statistics",
    "description": "At every instant, received = unique_processed + duplicate_dropped + pending + failed + discarded.",
    "responses": {
        200: _answer(
            {
                "type": "object",
                "required": [
                    "received",
                    "unique_processed",
                    "duplicate_dropped",
                    "pending",
                    "failed",
                    "discarded",
                    "topics",
                    "by_topic",
                    "uptime",
                ],
                "properties": {
                    "received": _COUNT | {"description": "Accepted events."},
                    "unique_processed": _COUNT | {"description": "Stored events."},
                    "duplicate_dropped": _COUNT | {"description": "Dropped events: their key was stored already."},
                    "pending": _COUNT | {"description": "Events in the inbox, on disk, not stored yet."},
                    "failed": _COUNT | {"description": "Events in dead letters."},
                    "discarded": _COUNT | {"description": "Events in dead letters that an operator gave up."},
                    "topics": {"type": "array", "items": {"type": "string"}},
                    "by_topic": {
                        "type": "object",
                        "additionalProperties": {
                            "type": "object",
                            "required": ["unique_processed", "duplicate_dropped"],
                            "properties": {"unique_processed": _COUNT, "duplicate_dropped": _COUNT},
                        },
                    },
                    "uptime": _COUNT | {"description": "Seconds since the service started."},
                },
            },
            "The statistics, from one snapshot.",
            OpenApiExample(
                "after a load of 5,000 with 20 % duplicates",
                {
                    "received": 5000,
                    "unique_processed": 4000,
                    "duplicate_dropped": 1000,
                    "pending": 0,
                    "failed": 0,
                    "discarded": 0,
                    "topics": ["user.created"],
                    "by_topic": {"user.created": {"unique_processed": 4000, "duplicate_dropped": 1000}},
                    "uptime": 42,
                },
            ),
        ),
        400: _NO_PARAMETERS,
        **_DOORS,
        503: _error("The database is away."),
    },
}

BATCH: dict[str, Any] = {
    "operation_id": "batch",
    "tags": ["statistics"],
    "summary": "Show the receipt of a publish",
    "responses": {
        200: _answer(_ref("Receipt"), "The receipt."),
        400: _NO_PARAMETERS,
        **_DOORS,
        404: _error("There is no such publish, or this API key may not see it."),
        503: _error("The database is away."),
    },
}

HEALTH: dict[str, Any] = {
    "operation_id": "health",
    "tags": ["service"],
    "summary": "Check that the process answers",
    "responses": {
        200: _answer(
            {
                "type": "object",
                "required": ["status"],
                "properties": {"status": {"type": "string", "const": "healthy"}},
            },
            "The process answers.",
        ),
    },
}

_READY = {
    "type": "object",
    "required": ["status", "down", "parts"],
    "properties": {
        "status": {"type": "string", "enum": ["ready", "unavailable"]},
        "down": {"type": "array", "items": {"type": "string"}},
        "parts": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["state"],
                "properties": {
                    "state": {"type": "string", "enum": ["ok", "warning", "down"]},
                    "detail": {"type": "string"},
                    "ms": {"type": "number"},
                },
            },
        },
    },
}

READY: dict[str, Any] = {
    "operation_id": "ready",
    "tags": ["service"],
    "summary": "Check that the service works",
    "description": (
        "Checks database, cache, broker, worker and beat, and whether a batch has waited too long. `Accept: text/html` "
        "returns a page for people. Without beat the service is ready, with a warning."
    ),
    "responses": {
        (200, "application/json"): OpenApiResponse(_READY, "The service is ready."),
        (200, "text/html"): OpenApiResponse({"type": "string"}, "The service is ready, as a page."),
        (503, "application/json"): OpenApiResponse(_READY, "The service is not ready; `down` names the reasons."),
        (503, "text/html"): OpenApiResponse({"type": "string"}, "The service is not ready, as a page."),
        406: _error("The service has none of the types in Accept."),
    },
}

METRICS: dict[str, Any] = {
    "operation_id": "metrics",
    "tags": ["service"],
    "summary": "Show the metrics for Prometheus",
    "responses": {(200, "text/plain"): OpenApiResponse({"type": "string"}, "Prometheus' text format."), **_DOORS},
}

INDEX: dict[str, Any] = {
    "operation_id": "index",
    # Being logged in changes what the page shows, not whether it is there.
    "auth": [],
    "tags": ["service"],
    "summary": "Show the start page or the index of addresses",
    "description": (
        "`Accept: text/html`, as browsers send it, returns the start page. Everything else, also curl's `*/*`, returns "
        "the index as JSON. The index needs no API key."
    ),
    "responses": {
        (200, "application/json"): _answer(
            {
                "type": "object",
                "required": ["name", "version", "authentication", "links"],
                "properties": {
                    "name": {"type": "string"},
                    "version": {"type": "string"},
                    "authentication": {
                        "type": ["string", "null"],
                        "description": "The header to send with every call, or null if no key is needed.",
                    },
                    "links": {"type": "object", "additionalProperties": {"type": "string", "format": "uri"}},
                },
            },
            "The index.",
        ),
        (200, "text/html"): OpenApiResponse({"type": "string"}, "The start page, or a page that says how to log in."),
        406: _error("The service has none of the types in Accept."),
        429: _DOORS[429],
    },
}
