"""OpenTelemetry spans from a request to the chunk that stored it, where OTEL_EXPORTER_OTLP_ENDPOINT is set.

A chunk holds batches of many requests, so its span is no request's child: it is linked to the spans of all of them,
whose traceparent (https://www.w3.org/TR/trace-context/) waited in the inbox with the batch. Unless it is set, nothing
of this runs and the SDK is not even imported.
"""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

#: Whether spans are made.
ON = False
_provider: Any = None
_tracer: Any = None


def start(provider: "TracerProvider | None" = None) -> None:
    """Begins to make spans, and to send them where OTEL_EXPORTER_OTLP_ENDPOINT says, unless given another provider.

    The SDK reads the other OTEL_ variables by itself: https://opentelemetry.io/docs/specs/otel/configuration/.
    """
    global ON, _provider, _tracer
    if provider is None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": "event-aggregator", "aggregator.part": settings.PART})
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _provider = provider
    _tracer = provider.get_tracer("event-aggregator")
    ON = True


def stop() -> None:
    """Makes no more spans."""
    global ON
    ON = False


def answer(get_response: Callable[[HttpRequest], HttpResponseBase], request: HttpRequest) -> HttpResponseBase:
    """Answers a request in a span, which is a child of its caller's where that sent a traceparent."""
    from opentelemetry.trace import SpanKind, StatusCode

    with _tracer.start_as_current_span(
        str(request.method), context=_context(request.META.get("HTTP_TRACEPARENT", "")), kind=SpanKind.SERVER
    ) as span:
        response = get_response(request)
        route = request.resolver_match.route if request.resolver_match else ""
        span.update_name(f"{request.method} /{route}")
        span.set_attributes(
            {
                "http.request.method": str(request.method),
                "http.route": f"/{route}",
                "http.response.status_code": response.status_code,
            }
        )
        if response.status_code >= 500:
            span.set_status(StatusCode.ERROR)
        return response


def traceparent() -> str:
    """Names the span that is at work, for whoever goes on with it later; empty without one."""
    if not ON:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


def stored(traceparents: Iterable[str], *, seconds: float, **numbers: int) -> None:
    """Makes the span of a chunk that has just been stored, linked to those of the requests that its batches came with.

    Args:
        traceparents: of its batches; empty ones are passed over.
        seconds: how long it took, up to now.
        numbers: what it held.
    """
    from opentelemetry.trace import Link, SpanKind, get_current_span

    contexts = [get_current_span(_context(each)).get_span_context() for each in dict.fromkeys(traceparents) if each]
    end = time.time_ns()
    span = _tracer.start_span(
        "store chunk",
        kind=SpanKind.CONSUMER,
        links=[Link(context) for context in contexts if context.is_valid],
        start_time=end - int(seconds * 1e9),
        attributes={f"aggregator.{name}": number for name, number in numbers.items()},
    )
    span.end(end_time=end)


def _context(traceparent: str) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, context=Context())
