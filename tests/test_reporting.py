"""Traces and errors reach those who collect them, with nothing in them that a publisher sent; unasked none are."""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aggregator_project import reporting
from events import checks, store, tracing
from events.models import Batch
from tests.conftest import Publish, event

Drain = Callable[[], store.Stored]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector(HTTPServer):
    """Takes whatever is posted to it."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                received.append((self.path, body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(script: str, folder: Path, **environment: str) -> str:
    """A process of the service that does what the script says."""
    done = subprocess.run(
        [sys.executable, "-c", f"import django\ndjango.setup()\n{script}"],
        env={**os.environ, "DATA_DIR": str(folder), "DJANGO_SETTINGS_MODULE": "aggregator_project.settings"}
        | {"DATABASE_URL": "", "LOG_FORMAT": "json", **environment},
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- Traces -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.start(provider)
    yield exporter
    tracing.stop()


@pytest.mark.django_db
def test_a_chunk_is_linked_to_the_requests_that_it_stores(
    spans: InMemorySpanExporter, publish: Publish, drain: Drain
) -> None:
    publish(event("1"), traceparent=PARENT)
    publish([event("2"), event("1")])
    drain()
    first, second, chunk = spans.get_finished_spans()
    assert [span.name for span in (first, second, chunk)] == ["POST /publish", "POST /publish", "store chunk"]
    assert first.parent
    assert f"{first.parent.trace_id:032x}-{first.parent.span_id:016x}" in PARENT
    assert second.parent is None
    assert [link.context.span_id for link in chunk.links] == [
        first.get_span_context().span_id,
        second.get_span_context().span_id,
    ]
    assert chunk.attributes == {
        "aggregator.batches": 2,
        "aggregator.events": 3,
        "aggregator.unique": 2,
        "aggregator.duplicates": 1,
    }


@pytest.mark.django_db
def test_a_span_says_what_was_answered_and_nothing_of_what_was_sent(
    spans: InMemorySpanExporter, publish: Publish
) -> None:
    publish(event(payload={"password": "hunter2"}))
    [span] = spans.get_finished_spans()
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": "/publish",
        "http.response.status_code": 202,
    }


@pytest.mark.django_db
def test_without_traces_batches_carry_none(publish: Publish) -> None:
    publish(event(), traceparent=PARENT)
    assert Batch.objects.get().traceparent == ""


def test_spans_reach_the_collector(collector: Collector, tmp_path: Path) -> None:
    script = (
        "from django.test import Client\n"
        "from opentelemetry import trace\n"
        "from events import tracing\n"
        "Client().get('/health', headers={'host': 'localhost'})\n"
        "tracing._provider.shutdown()\n"
    )
    run(script, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}")
    [(path, body)] = collector.received
    sent = ExportTraceServiceRequest.FromString(body)
    assert path == "/v1/traces"
    [span] = sent.resource_spans[0].scope_spans[0].spans
    assert span.name == "GET /health"
    assert {"service.name": "event-aggregator"}.items() <= {
        one.key: one.value.string_value for one in sent.resource_spans[0].resource.attributes
    }.items()


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_errors_reach_sentry_without_what_the_publisher_sent(collector: Collector, tmp_path: Path) -> None:
    script = (
        "import json, os\n"
        "from django.test import Client\n"
        "from events import inbox\n"
        # Not in these lines, which are part of a report of errors in them (of -c, since Python 3.13).
        "secret = os.environ['WHAT_CALLERS_SENT']\n"
        "def fail(events, **_):\n"
        "    secret = events\n"
        "    raise ZeroDivisionError('a mistake')\n"
        "inbox.accept = fail\n"
        "event = {'topic': 't', 'event_id': '1', 'source': 's', 'payload': {'password': secret}}\n"
        "headers = {'host': 'localhost', 'X-Request-ID': 'abc-1', 'Cookie': 'a=' + secret, 'Authorization': secret}\n"
        "client = Client(raise_request_exception=False)\n"
        "address = '/publish?q=' + secret\n"
        "answer = client.post(address, json.dumps(event), content_type='application/json', headers=headers)\n"
        "assert answer.status_code == 500\n"
        "import sentry_sdk\n"
        "sentry_sdk.flush(5)\n"
    )
    run(script, tmp_path, SENTRY_DSN=f"http://key@{collector.address}/1", WHAT_CALLERS_SENT="hunter2")
    events = [
        json.loads(line)
        for _, body in collector.received
        for line in body.splitlines()
        if line.startswith(b"{") and b'"exception"' in line
    ]
    [event] = events
    assert event["exception"]["values"][-1]["type"] == "ZeroDivisionError"
    assert event["tags"]["request_id"] == "abc-1"
    assert event["tags"]["part"] == "manage"
    assert b"hunter2" not in b"".join(body for _, body in collector.received)


# --- Unasked ----------------------------------------------------------------------------------------------------------


def test_unasked_nothing_of_it_is_imported(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from aggregator_project import wsgi\n"
        # redis-py looks for a part of it by itself.
        "ours = 'opentelemetry.exporter', 'opentelemetry.sdk.trace', 'sentry_sdk'\n"
        "print([name for name in sys.modules if name.startswith(ours)])\n"
    )
    assert run(script, tmp_path).splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("setting", "package"), [("OTEL_EXPORTER_OTLP_ENDPOINT", "opentelemetry-sdk"), ("SENTRY_DSN", "sentry-sdk")]
)
def test_what_is_asked_for_and_not_installed_is_said_at_the_start(
    setting: str, package: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    setattr(settings, setting, "http://key@localhost/1")
    monkeypatch.setattr(reporting, "find_spec", lambda _: None)
    [error] = checks.check_reporting()
    assert error.msg.startswith(f"{setting} is set")
    assert package in error.msg
    reporting.start()
    assert not tracing.ON
