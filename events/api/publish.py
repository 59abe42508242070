"""POST /publish: takes events, answers once they are on disk."""

import re
import threading
import time
from typing import Any

from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest
from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from events import inbox
from events.api import schema
from events.api.batches import Receipt, location, receipt
from events.api.body import BodyParser, published_events
from events.api.doors import GuardedView, check_topics, key_of
from events.models import KEY_LENGTH, Batch

#: Seconds that `Prefer: wait` may ask for.
LONGEST_WAIT_SECONDS = 30
#: Seconds between two looks at a batch that somebody waits for, doubled from the first to the last.
FIRST_LOOK_SECONDS = 0.01
LAST_LOOK_SECONDS = 0.16

_WAIT = re.compile(r"(?:^|[,\s;])wait\s*=\s*\"?(\d{1,9})", re.IGNORECASE)


class PublishView(GuardedView):
    """Publish events."""

    scope = "publish"

    parser_classes = [BodyParser]

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        if request.META.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
            # Django reads what Content-Length says, so nothing of a chunked body; gunicorn knows where that ends.
            request._stream = request.META["wsgi.input"]
            request.META["CONTENT_LENGTH"] = str(settings.PUBLISH_MAX_BYTES + 1)
        return super().initialize_request(request, *args, **kwargs)

    @extend_schema(**schema.PUBLISH)
    def post(self, request: Request) -> Response:
        wait = _wait_seconds(request.META.get("HTTP_PREFER", ""))
        key = key_of(request)
        with published_events(request) as events:
            check_topics(key, events)
            batch = inbox.accept(events, idempotency_key=_idempotency_key(request), api_key=key)
        # It is on disk: who waits does not keep it in memory as well.
        del events
        batch.body = None
        if wait and (done := _wait_for(batch, wait)):
            return Response(
                done, status=200, headers={"Location": location(batch), "Preference-Applied": f"wait={wait}"}
            )
        return Response(
            {"status": "accepted", "received": batch.received, "queued": batch.received, "batch_id": batch.pk},
            status=202,
            headers={"Location": location(batch)},
        )


def _idempotency_key(request: Request) -> str | None:
    key: str | None = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return None
    # The draft writes it as a structured-field string, in quotes; most clients send it bare.
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not 1 <= len(key) <= KEY_LENGTH or "\x00" in key:
        raise ValidationError({"detail": f"Idempotency-Key must have 1 to {KEY_LENGTH} characters."})
    return key


def _wait_seconds(prefer: str) -> int:
    """Seconds that a Prefer header asks to wait (RFC 7240 section 4.3), 0 where it does not."""
    found = _WAIT.search(prefer)
    return min(int(found[1]), LONGEST_WAIT_SECONDS) if found else 0


#: Half the threads of a process may wait for batches, so that the rest go on accepting. A preference may be declined.
_waiters = threading.BoundedSemaphore(max(1, settings.WEB_THREADS // 2))


def _wait_for(batch: Batch, seconds: int) -> Receipt | None:
    """The receipt once the batch is processed, or None where that takes longer or too many wait already."""
    if not _waiters.acquire(blocking=False):
        return None
    try:
        until = time.monotonic() + seconds
        pause = FIRST_LOOK_SECONDS
        while True:
            try:
                batch.refresh_from_db(fields=["status", "unique", "duplicates", "processed_at", "error", "attempts"])
            except (DatabaseError, InterfaceError):
                # It is accepted, whatever has happened to the database since.
                return None
            if batch.status != Batch.Status.PENDING:
                return receipt(batch)
            if time.monotonic() + pause > until:
                return None
            time.sleep(pause)
            pause = min(pause * 2, LAST_LOOK_SECONDS)
    finally:
        _waiters.release()
