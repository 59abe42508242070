"""Traces and errors for services outside this one, where the settings name one; their packages are optional."""

from importlib.util import find_spec
from typing import Any

from django.conf import settings

#: The setting that asks for something, the module it needs, and what to install for it.
WANTED = (
    (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "opentelemetry.exporter.otlp.proto.http",
        "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http",
    ),
    ("SENTRY_DSN", "sentry_sdk", "sentry-sdk"),
)


def missing() -> list[str]:
    """What the settings ask for and cannot have, one line each, with what to do about it."""
    return [
        f"{setting} is set, and the packages for it are not installed: pip install {packages}"
        for setting, module, packages in WANTED
        if getattr(settings, setting) and not _installed(module)
    ]


def start() -> None:
    """Begins to report what the settings ask for. Without them nothing is even imported."""
    if settings.OTEL_EXPORTER_OTLP_ENDPOINT and _installed(WANTED[0][1]):
        from events import tracing

        tracing.start()
    if settings.SENTRY_DSN and _installed(WANTED[1][1]):
        _start_sentry()


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _start_sentry() -> None:
    import sentry_sdk

    sentry_sdk.init(
        dsn=settings.SENTRY_DSN,
        send_default_pii=False,
        # Each of these might hold a payload.
        include_local_variables=False,
        max_request_body_size="never",
        before_send=without_what_callers_sent,
    )
    sentry_sdk.set_tag("part", settings.PART)


def without_what_callers_sent(event: Any, _hint: Any) -> Any:
    """The event with the request's method and address only, and the request's id."""
    from events.origin import request_id

    if request := event.get("request"):
        event["request"] = {name: request[name] for name in ("method", "url") if name in request}
    event.pop("user", None)
    if this := request_id.get():
        event.setdefault("tags", {})["request_id"] = this
    return event
