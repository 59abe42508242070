"""Middleware of Django's and others', kept to the requests that need it: a publish without it costs a quarter less."""

from collections.abc import Callable
from typing import Any

from axes.middleware import AxesMiddleware
from csp.middleware import CSPMiddleware
from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponsePermanentRedirect,
    StreamingHttpResponse,
)
from django.middleware.common import CommonMiddleware
from django.middleware.csrf import CsrfViewMiddleware
from django.shortcuts import render

#: Pages of people. Who is logged in to the admin may see them, also where an API key is needed.
PAGES = ("/admin/", "/docs", "/schema", "/overview")
START_PAGE = "/"

#: What load balancers ask, most of them by the address of a host or container, which no setting can foresee.
PROBES = ("/health", "/health/ready")
#: What Prometheus asks, by the address of each pod or container that it has found.
METRICS = "/metrics"


class CommonButForProbes(CommonMiddleware):
    """Which host names the service answers to, slashes, Content-Length. Probes may use any name.

    So may Prometheus with a key. Without keys the name has to be right: a page of a stranger, whose name leads to this
    machine (DNS rebinding), could have a browser read the metrics.
    """

    def process_request(self, request: HttpRequest) -> HttpResponsePermanentRedirect | None:
        path = request.path_info
        if path in PROBES or (path == METRICS and settings.REQUIRE_API_KEY):
            return None
        return super().process_request(request)


class AdminOnly:
    """Lets every request pass by that is not for the admin."""

    get_response: Any
    paths: str | tuple[str, ...] = "/admin/"
    start_page = False

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        path = request.path_info
        if path.startswith(self.paths) or (self.start_page and path == START_PAGE):
            return super().__call__(request)  # type: ignore[misc, no-any-return]
        return self.get_response(request)  # type: ignore[no-any-return]


class PagesOnly(AdminOnly):
    """Lets every request pass by that is not for a page of people."""

    paths = PAGES
    start_page = True


class AdminSession(PagesOnly, SessionMiddleware):
    """Sessions."""


class AdminCsrf(AdminOnly, CsrfViewMiddleware):
    """Protection of forms."""


class AdminAuthentication(PagesOnly, AuthenticationMiddleware):
    """Who is logged in."""


class AdminMessages(AdminOnly, MessageMiddleware):
    """Messages shown once."""


class AdminAxes(AdminOnly, AxesMiddleware):
    """Answers who has tried too many passwords."""


class PageCsp(PagesOnly, CSPMiddleware):
    """What pages may load and run."""


def without_body_for_head(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Middleware that leaves an answer to HEAD its headers and takes its body (RFC 9110 section 9.3.2).

    gunicorn would drop it too, with a warning for each, and only after a whole export had been put together.
    """

    def answer(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        if request.method == "HEAD":
            if isinstance(response, StreamingHttpResponse):
                response.streaming_content = ()
            elif isinstance(response, HttpResponse):
                response.content = b""
        return response

    return answer


def locked_out(request: HttpRequest, _response: HttpResponse, _credentials: Any) -> HttpResponse:
    """What somebody gets who has tried too many passwords, also with the right one."""
    minutes = int(settings.AXES_COOLOFF_TIME.total_seconds() // 60)
    response = render(request, "events/locked_out.html", {"minutes": minutes}, status=429)
    response["Retry-After"] = str(minutes * 60)
    return response
