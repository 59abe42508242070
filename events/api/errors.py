"""Every error as JSON: {"detail": …}, and for a bad publish also {"errors": [{"index", "field", "message"}]}."""

import logging
from typing import Any

from django.conf import settings
from django.core.exceptions import DisallowedHost, RequestDataTooBig, SuspiciousOperation, TooManyFieldsSent
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import Resolver404, resolve, reverse
from django.views import defaults
from django.views.csrf import csrf_failure as csrf_failure_page
from rest_framework.exceptions import MethodNotAllowed
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.views import exception_handler as drf_exception_handler

from events import inbox, memory, wire
from events.api import body
from events.api.curl import curl_line
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
        case body.UnsupportedBody():
            detail = str(error.detail)
            if "Accept" in error.headers:
                # The commonest mistake: curl -d without the header.
                detail += f" This works: {curl_line(context['request']._request, reverse('publish'))}"
            return Response({"detail": detail}, status=415, headers=error.headers)
        case memory.Busy():
            return _unavailable(
                "Too many large bodies came at once; nothing was accepted. Publish again later.", "busy"
            )
        case MethodNotAllowed():
            return Response({"detail": _other_method(context["request"]._request, context["view"])}, status=405)
        case SuspiciousOperation():
            detail, status = _suspicious(error)
            return Response({"detail": detail}, status=status)
    return drf_exception_handler(error, context)


def _unavailable(detail: str, reason: str) -> Response:
    response = Response({"detail": detail}, status=503, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
    # For whoever counts what was refused (aggregator_project/requests.py).
    response.refused_because = reason  # type: ignore[attr-defined]
    return response


def _other_method(request: HttpRequest, view: APIView) -> str:
    allowed = [method for method in view.allowed_methods if method != "OPTIONS"]
    # Who posts means to publish, wherever that is.
    path = reverse("publish") if request.method == "POST" else request.path
    line = curl_line(request, path, method=allowed[0])
    do = "does" if len(allowed) == 1 else "do"
    return f"{request.method} does nothing here, {' and '.join(allowed)} {do}. This works: {line}"


def _suspicious(error: Exception) -> tuple[str, int]:
    """What to say of a request that Django will not work on, and with which status."""
    match error:
        case DisallowedHost():
            return (
                "The service does not answer to the name in Host: call it by another, or add it to ALLOWED_HOSTS.",
                400,
            )
        case TooManyFieldsSent():
            return f"The query has more than {settings.DATA_UPLOAD_MAX_NUMBER_FIELDS:,} parameters.", 400
        case RequestDataTooBig():
            return "The body is too large.", 413
    return "The request cannot be understood.", 400


def _is_for_a_person(request: HttpRequest) -> bool:
    """Whether the answer is a page: in the admin always, elsewhere where a browser asks."""
    if request.path.startswith("/admin/"):
        return True
    return request.get_preferred_type(["application/json", "text/html"]) == "text/html"


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """400 and 413 for what no view has seen."""
    if _is_for_a_person(request):
        return defaults.bad_request(request, exception)
    detail, status = _suspicious(exception)
    return JsonResponse({"detail": detail}, status=status)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """403 from outside the API's views."""
    if _is_for_a_person(request):
        return defaults.permission_denied(request, exception)
    return JsonResponse({"detail": "This is not allowed."}, status=403)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """403 for a form without its token."""
    if _is_for_a_person(request):
        return csrf_failure_page(request, reason)
    return JsonResponse({"detail": reason or "The CSRF token is missing or wrong."}, status=403)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """404 for addresses that are no view's."""
    if _is_for_a_person(request):
        return defaults.page_not_found(request, exception)
    meant = "/" + "/".join(part for part in request.path.split("/") if part)
    if meant != request.path and _is_of_the_api(meant):
        # Not a redirect: clients follow one with a GET and drop the body (RFC 9110 section 15.4).
        detail = f"There is nothing at {request.path}; it is {meant}. This works: {curl_line(request, meant)}"
    else:
        detail = f"There is nothing at {request.path}; /docs lists every address."
    return JsonResponse({"detail": detail}, status=404)


def _is_of_the_api(path: str) -> bool:
    try:
        return not resolve(path).namespaces
    except Resolver404:
        return False


def server_error(request: HttpRequest) -> HttpResponse:
    """500: a mistake of ours, in the log with its traceback."""
    if _is_for_a_person(request):
        return defaults.server_error(request)
    return JsonResponse({"detail": "Something went wrong here; the service's log says what."}, status=500)
