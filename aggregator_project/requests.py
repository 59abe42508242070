"""Around every request: its id, how long it took, a line for the log where somebody should know, and its span."""

import logging
import time
from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

from events import metrics, tracing
from events.origin import request_id, request_id_from

log = logging.getLogger("requests")

#: Seconds after which a request is worth a line.
SLOW_SECONDS = 1.0
#: Seconds between two lines of refused publishes: a publisher gone wrong is news once, not a thousand times a second.
REFUSED_PAUSE_SECONDS = 1.0

#: Why a publish was refused, by the status of the answer; where that has more than one cause, the answer says it.
_REASONS = {
    400: "invalid",
    401: "no_key",
    403: "wrong_key",
    413: "too_large",
    415: "content_type",
    422: "key_reused",
    429: "throttled",
    503: "database",
}


def _reason(status: int) -> str:
    # What is not named above is the publisher's mistake or ours; ours alone raises an alarm.
    return _REASONS.get(status) or ("error" if status >= 500 else "invalid")


def _answer(get_response: Callable[[HttpRequest], HttpResponseBase], request: HttpRequest) -> HttpResponseBase:
    return get_response(request)


class Requests:
    """The outermost middleware."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response
        self.refused_line_at = float("-inf")

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        began = time.perf_counter()
        given = request.META.get("HTTP_X_REQUEST_ID", "")
        this = request_id_from(given)
        token = request_id.set(this)
        try:
            answer = tracing.answer if tracing.ON else _answer
            response = answer(self.get_response, request)
            response["X-Request-ID"] = this
            self._note(request, response, time.perf_counter() - began)
            return response
        finally:
            request_id.reset(token)

    def _note(self, request: HttpRequest, response: HttpResponseBase, seconds: float) -> None:
        match = request.resolver_match
        # Pages of the admin are many, and for people.
        view = (match.namespace or match.view_name or "redirect") if match else "none"
        status = response.status_code
        metrics.answered(view, status, seconds)
        if status >= 400 or seconds >= SLOW_SECONDS or settings.LOG_REQUESTS:
            self._log(request, response, view, seconds)

    def _log(self, request: HttpRequest, response: HttpResponseBase, view: str, seconds: float) -> None:
        status = response.status_code
        # Nothing a caller wrote, not even its path: what stands in a line must not be able to harm a terminal.
        facts = {"view": view, "method": request.method, "status": status, "ms": round(seconds * 1000, 1)}
        # A browser that looks at the address publishes nothing.
        refused = view == "publish" and request.method == "POST" and status >= 400
        if refused:
            reason = facts["reason"] = getattr(response, "refused_because", None) or _reason(status)
            metrics.PUBLISHES_REFUSED.labels(reason).inc()
        # What asks whether the service is ready gets a 503 as often as it asks; events/health.py says it once.
        if status >= 500 and view != "ready":
            log.warning("request failed", extra=facts)
        elif seconds >= SLOW_SECONDS and "HTTP_PREFER" not in request.META:
            log.warning("slow request", extra=facts)
        elif settings.LOG_REQUESTS:
            log.info("request", extra=facts)
        elif refused and time.monotonic() - self.refused_line_at >= REFUSED_PAUSE_SECONDS:
            self.refused_line_at = time.monotonic()
            log.info("publish refused", extra=facts | {"address": request.META.get("REMOTE_ADDR", "")})
