"""JSON for answers, encoded by msgspec, so that a stored payload goes out as the bytes that came in."""

from collections.abc import Iterable
from typing import Any

import msgspec
from django.http.request import MediaType
from rest_framework.exceptions import NotAcceptable
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

#: DRF's error texts are a subclass of str, which msgspec does not take for one.
_encoder = msgspec.json.Encoder(enc_hook=str)


class JSONRenderer(BaseRenderer):
    """Renders anything msgspec can encode: structs, dictionaries, datetimes (as RFC 3339), raw JSON."""

    media_type = "application/json"
    format = "json"
    charset = None
    render_style = "binary"

    def render(self, data: Any, accepted_media_type: Any = None, renderer_context: Any = None) -> bytes:
        return b"" if data is None else _encoder.encode(data)


class ContentNegotiation(DefaultContentNegotiation):
    """Chooses by the q-values of Accept (RFC 9110 section 12.5.1), which DRF's own ignores; of equals the first one.

    Django's get_preferred_type() forgets what q=0 excludes, and gives it to whoever accepts */* as well. An address
    that has only JSON answers in JSON (section 12.4.1).
    """

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        renderers = list(renderers)
        if request.method == "OPTIONS":
            # What a view says of itself is no page.
            return JSONRenderer(), JSONRenderer.media_type
        accepted = [MediaType(text) for text in request.META.get("HTTP_ACCEPT", "").split(",") if text.strip()]
        chosen = max(renderers, key=lambda renderer: _quality(str(renderer.media_type), accepted))
        if len(renderers) > 1 and not _quality(str(chosen.media_type), accepted):
            raise NotAcceptable(available_renderers=renderers)
        return chosen, str(chosen.media_type)


def _quality(offered: str, accepted: list[MediaType]) -> float:
    """The weight of a media type: that of the most specific range which has it; 0 excludes it."""
    if not accepted:
        return 1
    main, _, sub = offered.partition("/")
    matching = [each for each in accepted if each.main_type in (main, "*") and each.sub_type in (sub, "*")]
    return max(matching, key=lambda each: (each.main_type != "*", each.sub_type != "*")).quality if matching else 0
