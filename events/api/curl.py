"""Lines of curl for errors: what would have worked, with the host and port that the caller used."""

from django.conf import settings
from django.http import HttpRequest
from django.urls import reverse

_EVENT = '{"topic": "user.created", "event_id": "evt-1", "source": "me", "payload": {}}'


def curl_line(request: HttpRequest, path: str) -> str:
    """A line to paste into a shell.

    Args:
        request: tells the scheme, host and port.
        path: an address of the API; never what a caller made up, which a shell might obey.

    Returns:
        A publish of one event where the path is that of publishing, otherwise a GET.
    """
    parts = ["curl", request.build_absolute_uri(path)]
    if settings.REQUIRE_API_KEY:
        parts.append("-H 'Authorization: Api-Key <key>'")
    if path == reverse("publish"):
        parts.append(f"-H 'Content-Type: application/json' -d '{_EVENT}'")
    return " ".join(parts)
