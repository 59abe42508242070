"""GET /: the start page for people, and an index of the API for programs. GET /overview: the page's live part."""

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest
from django.urls import reverse
from django.utils.crypto import get_random_string
from django.utils.decorators import method_decorator
from django.views.decorators.cache import cache_control
from django.views.decorators.http import conditional_page
from drf_spectacular.utils import extend_schema
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.exceptions import NotAuthenticated, PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.renderers import TemplateHTMLRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from events import health, stats
from events.api import schema
from events.api.docs import PageView, sign_in_page, staff
from events.api.events import Query
from events.api.json import JSONRenderer
from events.models import Event
from events.stats import Books

#: Events that the page lists.
LATEST = 10
#: Milliseconds between two refreshes of an open page; the dashboard takes as long.
REFRESH_MILLISECONDS = 2000

#: What it means for people that a part of the service is not there.
_MEANING = {
    "database": "The database does not answer. Nothing can be published or read until it does.",
    "cache": "The cache does not answer. Events are accepted and stored all the same, a few seconds later.",
    "broker": "The broker does not answer. Events are accepted and kept on disk, and stored once it is back.",
    "worker": "No worker is running. Events are accepted and kept on disk, and stored once one is back.",
    "beat": "Beat is not running. Events go on being stored, but nobody looks for forgotten ones or removes old ones.",
    "pending": "Events wait longer than they should.",
}


@dataclass(slots=True)
class Problem:
    """Something that keeps the service from being well.

    Attributes:
        meaning: a sentence for people.
        detail: what was seen, in a few words; empty where strangers may not know.
        dead_letters: whether the admin's list of dead letters is the place to mend it.
    """

    meaning: str
    detail: str = ""
    dead_letters: bool = False


class Login(SessionAuthentication):
    """Who is logged in to the admin."""

    def authenticate_header(self, request: Request) -> str:
        # Makes it a 401, so that the page can tell "log in again" from "this account may not".
        return 'Session realm="event aggregator"'


class LoginIfKnown(Login):
    """Who is logged in to the admin, or nobody where the database cannot say: the page is there also without one."""

    def authenticate(self, request: Request) -> Any:
        try:
            return super().authenticate(request)
        except (DatabaseError, InterfaceError):
            return None


class StartPageView(PageView):
    """A page that is there for everybody, and decides itself what it shows to whom."""

    def get_authenticators(self) -> list[BaseAuthentication]:
        return [LoginIfKnown()]

    def get_permissions(self) -> list[BasePermission]:
        return []


class IndexView(StartPageView):
    """Lead people and programs to everything else."""

    # The first one is for whoever takes anything, as curl does.
    renderer_classes = [JSONRenderer, TemplateHTMLRenderer]

    @extend_schema(**schema.INDEX)
    @method_decorator(cache_control(private=True, no_cache=True))
    def get(self, request: Request) -> Response:
        if request.accepted_renderer.format == "json":
            return Response(index(request))
        if not _may_see(request):
            return sign_in_page(request, problems=problems(None, details=False))
        page = {
            "links": links(request),
            "refresh": REFRESH_MILLISECONDS,
            # Another one each time the page is opened, so that the first send is new and the second one is dropped.
            "example_id": get_random_string(8, "bcdfghjkmnpqrstvwxz23456789"),
        }
        return Response(page | overview(request), template_name="events/index.html")


@method_decorator(conditional_page, name="dispatch")
class OverviewView(StartPageView):
    """Show the part of the start page that changes, or 304 where nothing did."""

    renderer_classes = [TemplateHTMLRenderer]

    def get_authenticators(self) -> list[BaseAuthentication]:
        # Where only who is logged in may see it, an open page must not take a lost database for a log-out.
        return [Login()] if settings.REQUIRE_API_KEY else [LoginIfKnown()]

    @extend_schema(exclude=True)
    @method_decorator(cache_control(private=True, no_cache=True))
    def get(self, request: Request) -> Response:
        if not _may_see(request):
            raise PermissionDenied if staff(request) else NotAuthenticated
        return Response(overview(request), template_name="events/overview.html")


def index(request: Request) -> dict[str, Any]:
    """What a program is told: where everything is, and how to authenticate."""
    return {
        "name": settings.SPECTACULAR_SETTINGS["TITLE"],
        "version": settings.SPECTACULAR_SETTINGS["VERSION"],
        "authentication": "Authorization: Api-Key <key>" if settings.REQUIRE_API_KEY else None,
        "links": links(request),
    }


def links(request: Request) -> dict[str, str]:
    """The addresses of the service as this caller reaches it, with scheme, host and port."""
    names = ("publish", "events", "stats", "health", "ready", "metrics", "docs", "schema")
    found = {name: request.build_absolute_uri(reverse(name)) for name in names}
    found["admin"] = request.build_absolute_uri(reverse("admin:index"))
    if flower := flower_url(request._request):
        found["flower"] = flower
    return found


def flower_url(request: HttpRequest) -> str | None:
    """Flower's address beside the address that this request came to; None where Flower does not run."""
    if settings.NO_FLOWER:
        return None
    host = request.get_host()
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return f"http://{name}:{settings.FLOWER_PORT}"


def overview(request: Request) -> dict[str, Any]:
    """What is read anew each time: at the same cost however many events there are, and also without a database."""
    books: Books | None = None
    latest: list[Event] = []
    try:
        books = stats.books()
        # Without payloads: ten of them may be a hundred megabytes.
        newest = Query().matches().order_by("-id").only("topic", "event_id", "source", "received_at")
        latest = list(newest[:LATEST])
    except (DatabaseError, InterfaceError):
        # The report below says so.
        pass
    return {
        "staff": staff(request),
        "keys": settings.REQUIRE_API_KEY,
        "books": books,
        "latest": latest,
        "problems": problems(books, details=True),
    }


def problems(books: Books | None, *, details: bool) -> list[Problem]:
    """What is not well, worst first; nothing where all is well.

    Args:
        books: as far as they could be read.
        details: whether to say more than which part it is.
    """
    parts = sorted((part for part in health.report().parts if part.word != "ok"), key=lambda part: not part.down)
    found = [Problem(_MEANING[part.name], part.detail if details else "") for part in parts]
    if books and books.failed:
        found.append(
            Problem(
                f"{books.failed:,} event{'s' if books.failed > 1 else ''} could not be stored.",
                "Replay or discard the dead letters.",
                dead_letters=True,
            )
        )
    return found


def _may_see(request: Request) -> bool:
    """Where keys are required: whoever may see events in the admin."""
    return not settings.REQUIRE_API_KEY or bool(staff(request) and request.user.has_perm("events.view_event"))
