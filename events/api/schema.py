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
            "description": "The bytes that were published; {} where they were erased.",
        }
    types["OneEvent"]["properties"]["erased_at"]["description"] = "When its payload was erased; not there otherwise."
    for name in ("id", "received_at", "batch_id"):
        types["Event"]["properties"][name]["description"] = (
            "Ignored, so that what GET /events gave can be published again."
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
        made = "The operator makes a key with `manage.py apikey create`."
        return [
            {"type": "apiKey", "in": "header", "name": "Authorization", "description": f"`Api-Key <key>`. {made}"},
            {"type": "http", "scheme": "bearer", "description": f"`Bearer <key>`. {made}"},
            {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": f"`<key>`. {made}"},
        ]


#: What /docs begins with. {service} is the address that the reader came to.
_INTRODUCTION = """
Takes events over HTTP, stores each one once, drops and counts the duplicates, and never loses what it has accepted. Two
events are the same when `topic` and `event_id` are equal; the first one stays as it came.

**Publish first.** Run this twice: the first time the event is stored, the second time it is dropped as a duplicate.

```sh
curl {service}/publish \\
  -H 'Content-Type: application/json'{key} \\
  -d '{{"topic": "hello", "event_id": "evt-1", "source": "curl", "payload": {{"n": 1}}}}'
```

**Answers.** `202` means that all of a publish is on disk; it is stored a moment later, and `Location` is its receipt.
After `4xx` nothing was accepted: `detail` says why, and for events that are not valid `errors` names the event and the
field.

**Retry** after a lost answer, a time-out, `429` or `503`, when the seconds of `Retry-After` are over, and with the same
`event_id`: what is stored already is dropped and counted, so a retry can do no harm.

**Authentication.** {authentication}
"""
_WITH_KEYS = (
    "Every call but `/health` and `/health/ready` needs an API key in the header `Authorization: Api-Key <key>`. "
    "Whoever runs the service makes one in the admin or with `manage.py apikey create`; *Authorize* sends it with the "
    "calls below."
)
_WITHOUT_KEYS = "None: this service asks nobody for an API key. With `REQUIRE_API_KEY=true` it does."

_TAGS = {
    "events": "Publish events, and read what is stored.",
    "books": "What came in and what became of it.",
    "service": "Whether all is well, and where everything is.",
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
_LOCATION = _header("Location", "Where the receipt is.", response=[200, 202])
_RETRY = _header("Retry-After", "Seconds to wait before the next try.", OpenApiTypes.INT, response=[429, 503])

#: What any call may answer that needs a key and can be throttled.
_DOORS = {
    401: _error("No API key where one is needed, two that differ, or one that is unknown or revoked."),
    403: _error("The API key does not open this."),
    429: _error("Too many requests; Retry-After says when to come back."),
}

_NO_PARAMETERS = _error("There is a parameter in the query, and this address takes none.")

PUBLISH: dict[str, Any] = {
    "operation_id": "publish",
    "tags": ["events"],
    "summary": "Publish events",
    "description": (
        'Takes one event, an array of events, or `{"events": [...]}` as `application/json`, or one event a line as '
        "`application/x-ndjson`, in UTF-8; with `Content-Encoding: gzip` or `zstd` it is decompressed. "
        "The answer comes when all of them are on disk; "
        "if one of them is wrong, none is accepted. Publish again after any error or lost answer: an event "
        "that is stored already is dropped and counted as a duplicate."
    ),
    "parameters": [
        _header(
            "Prefer",
            "`wait=N`: answer with the finished receipt if that takes N seconds at most, N ≤ 30 (RFC 7240).",
        ),
        _header(
            "Idempotency-Key",
            "A name for this publish; a second one with it gets the first one's receipt. Each API key has its own.",
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
        "application/x-ndjson": _ref("Event") | {"description": "One event a line."},
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
            "On disk, to be stored in a moment.",
            OpenApiExample("accepted", {"status": "accepted", "received": 2, "queued": 2, "batch_id": 17}),
        ),
        200: _answer(_ref("Receipt"), "Processed already: asked for with `Prefer: wait`."),
        400: _answer(
            _ref("PublishError"), "Not events; nothing was accepted. Says what is wrong, where, how to mend it."
        ),
        413: _error("Too many events or bytes for one publish."),
        415: _error(
            "Neither application/json nor application/x-ndjson, not in UTF-8, or compressed with something else than "
            "gzip or zstd; the header Accept or Accept-Encoding says what is taken."
        ),
        422: _error("The idempotency key was used before, for another body."),
        **_DOORS,
        403: _answer(_ref("PublishError"), "The API key may not publish, or not to a topic of one of the events."),
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
            "description": "Events that match, on all pages; null where a search by payload has no index.",
        },
        "next": _LINK,
        "previous": _LINK,
        "events": {"type": "array", "items": _ref("StoredEvent")},
        "search": {
            "type": "object",
            "description": "Only where `payload.…` was asked for.",
            "required": ["indexed", "complete", "hint"],
            "properties": {
                "indexed": {"type": "boolean", "description": "Whether indexes serve all that was asked for."},
                "complete": {
                    "type": "boolean",
                    "description": (
                        "False where the time was over before the page was full or the end was reached: more events "
                        "may match, and `next` goes on looking."
                    ),
                },
                "hint": {"type": ["string", "null"], "description": "What would make it fast."},
            },
        },
    },
}

EVENTS: dict[str, Any] = {
    "operation_id": "events",
    "tags": ["events"],
    "summary": "List stored events",
    "description": (
        "Oldest first, or newest first with `order=desc`: in the order they were stored, or with `since` or `until` in "
        "that they were accepted. Use "
        "`next` and `previous` as they are; a page ends early where its payloads come to 4 MiB. "
        "`cursor` is for following: by it, without `since` and `until`, no event is missed; at the last page ask for "
        "its address again. `since` and `until` are for looking: an event accepted early may be stored late. "
        "With `Accept: application/x-ndjson` or `text/csv` every match is streamed. NDJSON is the exact form. In CSV a "
        "text that a spreadsheet would run, or that begins with an apostrophe, has one more apostrophe in front.\n\n"
        "**By payload:** any parameter whose name begins with `payload.` asks for a value in the payload, as in "
        "`payload.user_id=123`, or `payload.user.id=123` for one inside another. `123` finds the number and the text, "
        '`true` and `null` the constant and the text, and in quotes (`"123"`) the text alone. Several must all be '
        "met, together with the other filters. Without an index (`manage.py index payload.user_id`) one page looks at "
        "events for about a second: it may be short or empty, and `next` goes on behind the last one looked at."
    ),
    "parameters": [
        _query("topic", "Only events of this topic."),
        _query("source", "Only events of this source."),
        _query("event_id", "Only events with this id, of whatever topic."),
        _query(
            "batch_id",
            "Only the events that this publish added.",
            {"type": "integer", "minimum": 1, "maximum": 2**63 - 1},
        ),
        _query(
            "since",
            "Only events accepted at this moment or later. For looking, not for following.",
            OpenApiTypes.DATETIME,
        ),
        _query("until", "Only events accepted before this moment.", OpenApiTypes.DATETIME),
        _query(
            "order",
            "`desc`: newest first. A cursor goes on in the order it came from.",
            {"type": "string", "enum": ["asc", "desc"], "default": "asc"},
        ),
        OpenApiParameter(
            "limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, description="Events on a page."
        ),
        _query("cursor", "A place in the list, from `next` or `previous`. For following."),
    ],
    "responses": {
        (200, "application/json"): _PAGE,
        (200, "application/x-ndjson"): OpenApiResponse(_ref("StoredEvent"), "One event a line."),
        (200, "text/csv"): OpenApiResponse({"type": "string"}, "One event a row, with a header."),
        400: _error("A parameter is unknown, wrong or given twice."),
        **_DOORS,
        406: _error("None of the types in Accept can be given."),
        503: _error("The database is away, or too many streams are open."),
    },
}

_EVENT_404 = _error("No such event, or the API key does not open its topic, or retention has removed it.")

EVENT: dict[str, Any] = {
    "operation_id": "event",
    "tags": ["events"],
    "summary": "Show one event",
    "responses": {
        200: _answer(_ref("OneEvent"), "As in the list."),
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
        "Takes the payload away wherever it is kept, for good: from the event, from its dropped duplicates, and from "
        "publishes that wait. The key stays, so that a retry is still a duplicate, for good. It can be called again. "
        "**Needs an API key with the scope `erase`, also where the service requires no keys.**"
    ),
    "responses": {
        204: OpenApiResponse(description="Nothing of it is kept."),
        400: _NO_PARAMETERS,
        404: _EVENT_404,
        409: _error("All is erased but what dead letters may hold that cannot be read; names these batches."),
        **_DOORS,
        503: _error("The database is away; what was erased so far stays erased. Try again later."),
    },
}

STATS: dict[str, Any] = {
    "operation_id": "stats",
    "tags": ["books"],
    "summary": "Show what came in and what became of it",
    "description": "Always: received = unique_processed + duplicate_dropped + pending + failed + discarded.",
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
                    "received": _COUNT | {"description": "Events accepted."},
                    "unique_processed": _COUNT | {"description": "Events stored."},
                    "duplicate_dropped": _COUNT | {"description": "Events dropped: their key was stored already."},
                    "pending": _COUNT | {"description": "Events on disk that wait to be stored."},
                    "failed": _COUNT | {"description": "Events of dead letters."},
                    "discarded": _COUNT | {"description": "Events of dead letters that an operator gave up."},
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
            "The books, in one snapshot.",
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
    "tags": ["books"],
    "summary": "Show what became of one publish",
    "responses": {
        200: _answer(_ref("Receipt"), "The receipt."),
        400: _NO_PARAMETERS,
        **_DOORS,
        404: _error("There is no such publish, or it is none of this API key's."),
        503: _error("The database is away."),
    },
}

HEALTH: dict[str, Any] = {
    "operation_id": "health",
    "tags": ["service"],
    "summary": "Say whether the process answers",
    "responses": {
        200: _answer(
            {
                "type": "object",
                "required": ["status"],
                "properties": {"status": {"type": "string", "const": "healthy"}},
            },
            "It does.",
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
    "summary": "Say whether the service can do its work",
    "description": (
        "Database, cache, broker, worker and beat, and whether anything has been pending too long. `Accept: text/html` "
        "gives a page for people. Without beat the service is still ready: it is a warning."
    ),
    "responses": {
        (200, "application/json"): OpenApiResponse(_READY, "It can."),
        (200, "text/html"): OpenApiResponse({"type": "string"}, "It can, as a page."),
        (503, "application/json"): OpenApiResponse(_READY, "It cannot; `down` names what is in the way."),
        (503, "text/html"): OpenApiResponse({"type": "string"}, "It cannot, as a page."),
        406: _error("None of the types in Accept can be given."),
    },
}

METRICS: dict[str, Any] = {
    "operation_id": "metrics",
    "tags": ["service"],
    "summary": "Show what Prometheus collects",
    "responses": {(200, "text/plain"): OpenApiResponse({"type": "string"}, "Prometheus' text format.")},
}

INDEX: dict[str, Any] = {
    "operation_id": "index",
    # Being logged in changes what the page shows, not whether it is there.
    "auth": [],
    "tags": ["service"],
    "summary": "Show where everything is",
    "description": (
        "`Accept: text/html`, as browsers send it, gives the start page; anything else, also curl's `*/*`, this index. "
        "It is open to everybody, also where API keys are required."
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
                        "description": "The header to send with every call; null where no key is needed.",
                    },
                    "links": {"type": "object", "additionalProperties": {"type": "string", "format": "uri"}},
                },
            },
            "The index.",
        ),
        (200, "text/html"): OpenApiResponse({"type": "string"}, "The start page, or how to log in."),
        406: _error("None of the types in Accept can be given."),
        429: _DOORS[429],
    },
}
