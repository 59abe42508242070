"""JSON for answers, encoded by msgspec, so that a stored payload goes out as the bytes that came in."""

from collections.abc import Iterable
from typing import Any

import msgspec
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
    """DRF's own, where there is a choice. An address that has only JSON answers in JSON (RFC 9110 section 12.4.1)."""

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        renderers = list(renderers)
        if request.method == "OPTIONS":
            # What a view says of itself is no page.
            return JSONRenderer(), JSONRenderer.media_type
        if len(renderers) == 1:
            return renderers[0], str(renderers[0].media_type)
        chosen: tuple[BaseRenderer, str] = super().select_renderer(request, renderers, format_suffix)
        return chosen
