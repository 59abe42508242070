"""Who may call the API: with REQUIRE_API_KEY a key with the right scope, and as often as THROTTLE_RATE allows."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings
from django.core.cache import cache
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated, PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle, SimpleRateThrottle
from rest_framework.views import APIView

from aggregator_project.proxies import client_network
from events import keys, wire
from events.api.curl import curl_line
from events.models import ApiKey

log = logging.getLogger(__name__)

#: Seconds without a try after the cache failed, so that a dead one costs one request a pause, not every one.
THROTTLE_PAUSE_SECONDS = 1.0

#: Schemes of Authorization that hold an API key, in small letters.
_SCHEMES = ("api-key", "bearer")


class ForeignTopics(Exception):
    """Events of a publish have topics that its key does not open; nothing of it was accepted.

    Attributes:
        problems: the first of them, as in a publish that is not valid.
    """

    def __init__(self, problems: list[wire.Problem], count: int, total: int) -> None:
        self.problems = problems
        self.detail = (
            f"{count} of {total} events have a topic that this API key does not open, so nothing was accepted; "
            "see errors."
        )
        super().__init__(self.detail)


class GuardedView(APIView):
    """A view that needs a key where the service requires them. Without REQUIRE_API_KEY it costs what any view does.

    Attributes:
        scope: what the key must be allowed to do: publish, read, or any.
        always: methods that need a key also where the service requires none, and what it must be allowed to do.
        every_topic: whether it tells of every topic, so that a key bound to some may not have it.
    """

    scope = "read"
    always: Mapping[str, str] = {}
    every_topic = False

    @property
    def needs_key(self) -> bool:
        # For /schema a view is made before there is a request.
        return settings.REQUIRE_API_KEY or getattr(self.request, "method", None) in self.always

    def get_authenticators(self) -> list[BaseAuthentication]:
        return [ApiKeyAuthentication()] if self.needs_key else []

    def get_permissions(self) -> Sequence[BasePermission]:
        return [HasScope()] if self.needs_key else []

    def get_throttles(self) -> list[BaseThrottle]:
        return [RateThrottle()] if settings.THROTTLE_RATE else []


def key_of(request: Request) -> ApiKey | None:
    """The key that a request came with; None where none is needed."""
    return request.auth  # type: ignore[return-value]  # the stubs know DRF's own tokens only


def given_keys(meta: Mapping[str, str]) -> set[str]:
    """The API keys that the headers of a request hold: one, if they are right.

    Args:
        meta: the headers as CGI names them (HTTP_AUTHORIZATION).
    """
    scheme, _, key = meta.get("HTTP_AUTHORIZATION", "").partition(" ")
    # Another scheme may be a proxy's own, as Basic often is.
    given = {key.strip()} if scheme.lower() in _SCHEMES else set()
    if x_api_key := meta.get("HTTP_X_API_KEY"):
        given.add(x_api_key.strip())
    return given


class ApiKeyAuthentication(BaseAuthentication):
    """`Authorization: Api-Key …` or `Bearer …`, or `X-API-Key: …`; request.auth is its row."""

    def authenticate(self, request: Request) -> tuple[None, ApiKey] | None:
        given = given_keys(request.META)
        if not given:
            return None
        if len(given) > 1:
            raise AuthenticationFailed("Authorization and X-API-Key hold different API keys: send one of them.")
        key = keys.find(given.pop())
        if key is None:
            raise AuthenticationFailed(
                "This API key is unknown or revoked: ask the operator for a new one (manage.py apikey create)."
            )
        return None, key

    def authenticate_header(self, request: Request) -> str:
        # Makes it a 401 (RFC 9110 section 11.6.1).
        return 'Api-Key realm="event aggregator", Bearer realm="event aggregator"'


def _what_to_send(request: Request) -> str:
    wrong = ""
    if request.META.get("HTTP_AUTHORIZATION"):
        # Without what it holds: that may be a key without a scheme.
        wrong = "The scheme in Authorization is neither Api-Key nor Bearer. "
    line = curl_line(request._request, request.path, method=str(request.method), key=True)
    return f"{wrong}An API key is needed: send the header Authorization: Api-Key <key>. This works: {line}"


class HasScope(BasePermission):
    """The key's scope is what the view asks for."""

    def has_permission(self, request: Request, view: GuardedView) -> bool:  # type: ignore[override]
        key = key_of(request)
        if key is None:
            raise NotAuthenticated(_what_to_send(request))
        scope = view.always.get(str(request.method), view.scope)
        if scope != "any" and scope not in key.scopes:
            raise PermissionDenied(
                f"This needs an API key with the scope {scope}; this one has {' and '.join(key.scopes)}."
            )
        if view.every_topic and key.topics:
            raise PermissionDenied("This tells of every topic, and this API key opens only some.")
        return True


class HasScopeOrLogin(HasScope):
    """For pages of people: a key, or being logged in to the admin."""

    def has_permission(self, request: Request, view: GuardedView) -> bool:  # type: ignore[override]
        user = getattr(request._request, "user", None)
        if user is not None and user.is_active and user.is_staff:
            return True
        if key_of(request) is None:
            raise NotAuthenticated(f"Log in at /admin/ first, or send an API key. {_what_to_send(request)}")
        return super().has_permission(request, view)


def check_topics(key: ApiKey | None, events: Sequence[wire.Event]) -> None:
    """Lets a publish pass whose topics the key opens.

    Raises:
        ForeignTopics: names every event that has another one.
    """
    if key is None or not key.topics:
        return
    beginnings = tuple(key.topics)
    foreign = [index for index, event in enumerate(events) if not event.topic.startswith(beginnings)]
    if foreign:
        message = f"does not begin with {' or '.join(key.topics)}, which is what this API key opens"
        problems = [wire.Problem(index=index, field="topic", message=message) for index in foreign[: wire.MAX_PROBLEMS]]
        raise ForeignTopics(problems, len(foreign), len(events))


class RateThrottle(SimpleRateThrottle):
    """Counts the requests of a key, or of an address where there is none, in windows of the rate's own unit.

    A counter in the shared cache, because SimpleRateThrottle's list of moments grows with the rate and loses what two
    processes write at once. A window can begin anywhere, so up to twice the rate passes around its edge.
    """

    scope = "api"
    silent_until = 0.0
    num_requests: int
    #: Seconds.
    duration: int
    seconds_left = 0.0

    def get_rate(self) -> str:
        return str(settings.THROTTLE_RATE)

    def allow_request(self, request: Request, view: Any) -> bool:
        moment = time.time()
        window = int(moment // self.duration)
        self.seconds_left = (window + 1) * self.duration - moment
        return self._count(f"throttle:{_who(request)}:{window}") <= self.num_requests

    def wait(self) -> float:
        return self.seconds_left

    def _count(self, name: str) -> int:
        kind = type(self)
        if time.monotonic() < kind.silent_until:
            return 0
        try:
            cache.add(name, 0, timeout=self.duration + 1)
            count = cache.incr(name)
        except ValueError:
            # It expired or was flushed between the two.
            return 0
        except Exception as error:
            # Every cache has errors of its own. Without a count nobody is refused: the service is for taking events.
            if not kind.silent_until:
                log.warning("throttling is off: the cache does not answer: %s", error)
            kind.silent_until = time.monotonic() + THROTTLE_PAUSE_SECONDS
            return 0
        if kind.silent_until:
            kind.silent_until = 0.0
            log.warning("throttling is on again")
        return count


def _who(request: Request) -> str:
    key = key_of(request)
    return f"key:{key.pk}" if key else f"address:{client_network(request._request)}"
