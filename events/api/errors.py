"""Every error as JSON: {"detail": …}, and for a bad publish also {"errors": [{"index", "field", "message"}]}."""

import logging
from typing import Any

from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.defaults import page_not_found
from django.views.defaults import server_error as server_error_page
from rest_framework.exceptions import UnsupportedMediaType
from rest_framework.response import Response
from rest_framework.views import exception_handler as drf_exception_handler

from events import inbox, wire
from events.api.doors import ForeignTopics
from events.api.events import TooManyStreams

log = logging.getLogger(__name__)

#: Seconds a publisher should wait after a 503: the database's own waits are over by then, or the inbox has shrunk.
RETRY_AFTER_SECONDS = 2


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler: what each of our exceptions means in HTTP."""
    match error:
        case wire.Refused():
            return Response({"detail": error.detail, "errors": error.problems}, status=400)
        case ForeignTopics():
            return Response({"detail": error.detail, "errors": error.problems}, status=403)
        case wire.TooMany():
            return Response({"detail": str(error)}, status=413)
        case inbox.KeyReused():
            return Response(
                {"detail": "This Idempotency-Key was used before, for another body: use a new key for a new publish."},
                status=422,
            )
        case TooManyStreams():
            return _unavailable("Too many streams are open. Try again later, or read page by page.", "streams")
        case inbox.InboxFull():
            return _unavailable("The inbox is full; nothing was accepted. Publish again later.", "inbox_full")
        case DatabaseError() | InterfaceError():
            log.error("database out of order: %s", error)
            return _unavailable("The database does not answer; nothing was accepted. Try again later.", "database")
        case UnsupportedMediaType():
            return Response({"detail": str(error.detail)}, status=415)
    return drf_exception_handler(error, context)


def _unavailable(detail: str, reason: str) -> Response:
    response = Response({"detail": detail}, status=503, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
    # For whoever counts what was refused (aggregator_project/requests.py).
    response.refused_because = reason  # type: ignore[attr-defined]
    return response


def _is_for_a_person(request: HttpRequest) -> bool:
    """Whether the answer is a page: in the admin always, elsewhere where a browser asks."""
    if request.path.startswith("/admin/"):
        return True
    return request.get_preferred_type(["application/json", "text/html"]) == "text/html"


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """404 for addresses that are no view's."""
    if _is_for_a_person(request):
        return page_not_found(request, exception)
    return JsonResponse({"detail": f"There is nothing at {request.path}; /docs lists every address."}, status=404)


def server_error(request: HttpRequest) -> HttpResponse:
    """500: a mistake of ours, in the log with its traceback."""
    if _is_for_a_person(request):
        return server_error_page(request)
    return JsonResponse({"detail": "Something went wrong here; the service's log says what."}, status=500)
