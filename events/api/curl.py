"""Lines of curl for errors: what would have worked, with the host and port that the caller used."""

import shlex

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest
from django.urls import reverse

_EVENT = '{"topic": "user.created", "event_id": "evt-1", "source": "me", "payload": {}}'


def curl_line(request: HttpRequest, path: str, *, method: str = "GET", key: bool = False) -> str:
    """A line to paste into a shell.

    Args:
        request: tells the scheme, host and port.
        path: an address of the API.
        method: how to ask it; the address of publishing gets a publish of one event, whatever this is.
        key: whether it needs an API key also where the service requires none.

    Returns:
        The line. Nothing in it is obeyed by a shell, whatever stands in the path.
    """
    try:
        address = request.build_absolute_uri(path)
    except DisallowedHost:
        # A probe may call the service by any name; this one leads to it from the same machine.
        address = f"http://127.0.0.1:{settings.PORT}{path}"
    parts = ["curl", shlex.quote(address)]
    if key or settings.REQUIRE_API_KEY:
        parts.append("-H 'Authorization: Api-Key <key>'")
    if path == reverse("publish"):
        parts.append(f"-H 'Content-Type: application/json' -d '{_EVENT}'")
    elif method not in ("GET", "HEAD"):
        parts.append(f"-X {method}")
    return " ".join(parts)
