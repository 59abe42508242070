"""Middleware for people with a browser, kept to the admin: without it a publish costs a quarter less."""

from typing import Any

from axes.middleware import AxesMiddleware
from csp.middleware import CSPMiddleware
from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.middleware.csrf import CsrfViewMiddleware
from django.shortcuts import render

#: Pages of people outside the admin. Who is logged in there may see them, also where an API key is needed.
PAGES = ("/admin/", "/docs", "/schema")


class AdminOnly:
    """Lets every request pass by that is not for the admin."""

    get_response: Any
    paths: str | tuple[str, ...] = "/admin/"

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path_info.startswith(self.paths):
            return super().__call__(request)  # type: ignore[misc, no-any-return]
        return self.get_response(request)  # type: ignore[no-any-return]


class AdminSession(AdminOnly, SessionMiddleware):
    """Sessions."""

    paths = PAGES


class AdminCsrf(AdminOnly, CsrfViewMiddleware):
    """Protection of forms."""


class AdminAuthentication(AdminOnly, AuthenticationMiddleware):
    """Who is logged in."""

    paths = PAGES


class AdminMessages(AdminOnly, MessageMiddleware):
    """Messages shown once."""


class AdminAxes(AdminOnly, AxesMiddleware):
    """Answers who has tried too many passwords."""


class PageCsp(AdminOnly, CSPMiddleware):
    """What pages may load and run."""

    paths = PAGES


def locked_out(request: HttpRequest, _response: HttpResponse, _credentials: Any) -> HttpResponse:
    """What somebody gets who has tried too many passwords, also with the right one."""
    minutes = int(settings.AXES_COOLOFF_TIME.total_seconds() // 60)
    response = render(request, "events/locked_out.html", {"minutes": minutes}, status=429)
    response["Retry-After"] = str(minutes * 60)
    return response
