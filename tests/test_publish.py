"""POST /publish: 202 means on disk; anything else means that nothing was accepted, and says why."""

import gc
import gzip
import io
import json
import random
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import cache
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import OperationalError, close_old_connections, connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext

from events import inbox, memory, store
from events.api import body as bodies
from events.api import publish as publishing
from events.api.content_coding import decompress
from events.models import Batch, Event
from tests.conftest import Publish, event
from tests.test_wire import BOMBS

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]

ONE = (
    b'{"topic":"powershell_test","event_id":"ps-event-123","source":"my-laptop",'
    b'"payload":{"info":"testing from powershell"}}'
)
ARRAY = (
    b'[{"topic":"batch_test","event_id":"b-1","source":"ps","payload":{}},'
    b'{"topic":"batch_test","event_id":"b-2","source":"ps","payload":{}}]'
)
WITH_TIMESTAMP = (
    b'{"topic":"user.created","event_id":"evt-12345","timestamp":"2025-10-21T14:30:00Z","source":"auth-service",'
    b'"payload":{"user_id":123,"email":"test@example.com"}}'
)
ENVELOPE = (
    b'{"events":[{"topic":"order.placed","event_id":"evt-001","timestamp":"2025-10-21T14:30:00Z",'
    b'"source":"order-service","payload":{"order_id":1}},{"topic":"order.placed","event_id":"evt-002",'
    b'"timestamp":"2025-10-21T14:31:00Z","source":"order-service","payload":{"order_id":2}}]}'
)


def nothing_accepted() -> bool:
    return not Batch.objects.exists()


# --- Accepted ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "events"), [(ONE, 1), (ARRAY, 2), (WITH_TIMESTAMP, 1), (ENVELOPE, 2)])
def test_the_documented_examples_are_accepted(body: bytes, events: int, publish: Publish) -> None:
    answer = publish(body)
    batch = Batch.objects.get()
    assert answer.status_code == 202
    assert answer.json() == {"status": "accepted", "received": events, "queued": events, "batch_id": batch.pk}


@pytest.mark.parametrize("body", [ONE, ARRAY, WITH_TIMESTAMP, ENVELOPE])
def test_the_documented_examples_come_back_as_they_went_in(
    body: bytes, publish: Publish, drain: Drain, client: Client
) -> None:
    publish(body)
    drain()
    sent = json.loads(body)
    sent = sent if isinstance(sent, list) else sent.get("events", [sent])
    listed = client.get("/events").json()["events"]
    assert [{name: got[name] for name in given} for given, got in zip(sent, listed, strict=True)] == sent


def test_the_location_is_the_receipt(publish: Publish, client: Client) -> None:
    answer = publish(event())
    assert answer["Location"] == f"/batches/{answer.json()['batch_id']}"
    assert client.get(answer["Location"]).status_code == 200


def test_what_get_events_gave_can_be_published_again(publish: Publish, drain: Drain, client: Client) -> None:
    publish([event("1"), event("2", timestamp="2025-10-21T14:30:00Z")])
    drain()
    page = client.get("/events").json()["events"]
    assert publish(page).status_code == 202
    assert drain() == store.Stored(batches=1, events=2, duplicates=2)


def test_a_publish_costs_the_same_statements_whatever_its_size(publish: Publish) -> None:
    publish(event())  # asks once what is pending
    counts = []
    for size in (1, 500):
        with CaptureQueriesContext(connection) as statements:
            publish([event(str(n)) for n in range(size)])
        counts.append([s["sql"].split()[0] for s in statements if "SAVEPOINT" not in s["sql"]])
    assert counts == [["INSERT"], ["INSERT"]]


# --- Refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_a_400_that_leaves_nothing_behind(name: str, publish: Publish) -> None:
    answer = publish(BOMBS[name])
    assert answer.status_code == 400
    assert answer.json()["errors"]
    assert nothing_accepted()


def test_every_problem_is_listed_and_nothing_is_accepted(publish: Publish) -> None:
    answer = publish([event("1"), event("2", source=5), {"topic": "t"}])
    assert answer.status_code == 400
    assert answer.json() == {
        "detail": "2 of 3 events are not valid, so nothing was accepted; see errors.",
        "errors": [
            {"index": 1, "field": "source", "message": "must be text, not a number"},
            {"index": 2, "field": "event_id", "message": "is missing"},
            {"index": 2, "field": "source", "message": "is missing"},
        ],
    }
    assert nothing_accepted()


def test_the_first_100_problems_are_listed(publish: Publish) -> None:
    assert len(publish([{}] * 200).json()["errors"]) == 100


def test_an_empty_body_is_a_400(publish: Publish) -> None:
    answer = publish(b"")
    assert answer.status_code == 400
    assert "is empty" in answer.json()["detail"]


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        'application/json; charset="iso-8859-1"',
        "application/json; charset=utf-80",
    ],
)
def test_a_content_type_other_than_json_in_utf_8_is_a_415(content_type: str, publish: Publish) -> None:
    answer = publish(event(), content_type=content_type)
    assert answer.status_code == 415
    assert content_type in answer.json()["detail"]
    assert "application/json" in answer["Accept"]
    assert nothing_accepted()


@pytest.mark.parametrize("content_type", ["", "text/plain", "text/plain;charset=UTF-8", "json", "*/*", "application/*"])
def test_a_415_says_which_header_to_send(content_type: str, publish: Publish) -> None:
    answer = publish(event(), content_type=content_type)
    assert answer.status_code == 415
    assert "send the header Content-Type: application/json" in answer.json()["detail"]
    assert answer["Accept"] == "application/json, application/x-ndjson"
    assert nothing_accepted()


def test_a_body_without_a_content_type_is_told_so() -> None:
    status, answer = call_wsgi(Body(ONE), CONTENT_LENGTH=str(len(ONE)), CONTENT_TYPE="")
    assert status.startswith("415")
    assert answer["detail"].startswith("There is no Content-Type")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        'application/json; charset="utf8"',
        "application/json; charset=us-ascii",
        "application/json; profile=x",
    ],
)
def test_json_in_utf_8_is_accepted_however_it_is_named(content_type: str, publish: Publish) -> None:
    assert publish(event(), content_type=content_type).status_code == 202


@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("br", "br"),
        ("deflate", "deflate"),
        ("compress", "compress"),
        ("gzip, zstd", "gzip, zstd"),
        ("gzip, identity, gzip", "gzip, gzip"),
        ("gzip;q=1", "gzip;q=1"),
        ("x" * 5000, "x" * 100),
    ],
)
def test_another_content_coding_or_several_are_a_415(encoding: str, named: str, publish: Publish) -> None:
    answer = publish(event(), **{"Content-Encoding": encoding})
    assert answer.status_code == 415
    assert named in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 300
    assert answer["Accept-Encoding"] == "gzip, zstd, identity"
    assert nothing_accepted()


@pytest.mark.parametrize("encoding", ["identity", "Identity", "", "identity, identity"])
def test_the_identity_encoding_is_none(encoding: str, publish: Publish) -> None:
    assert publish(event(), **{"Content-Encoding": encoding}).status_code == 202


# --- Compressed -------------------------------------------------------------------------------------------------------

COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd.compress}
coding = pytest.mark.parametrize("coding", COMPRESS)


@pytest.mark.parametrize(
    ("encoding", "coding"),
    [("gzip", "gzip"), ("GZIP", "gzip"), ("x-gzip", "gzip"), ("zstd", "zstd"), ("identity, zstd", "zstd")],
)
def test_a_compressed_body_is_accepted(encoding: str, coding: str, publish: Publish) -> None:
    answer = publish(COMPRESS[coding](ARRAY), **{"Content-Encoding": encoding})
    assert (answer.status_code, answer.json()["received"]) == (202, 2)


@coding
def test_a_compressed_body_comes_back_as_it_went_in(
    coding: str, publish: Publish, drain: Drain, client: Client
) -> None:
    # Large enough to take its turn, and for several pieces of what is decompressed at a time.
    payload = {"text": "".join(random.Random(1).choices("abcdef", k=2_000_000))}
    publish(COMPRESS[coding](json.dumps(event(payload=payload)).encode()), **{"Content-Encoding": coding})
    drain()
    assert client.get("/events").json()["events"][0]["payload"] == payload


@coding
def test_streams_one_after_the_other_are_one_body(coding: str, publish: Publish) -> None:
    body = COMPRESS[coding](ARRAY[:50]) + COMPRESS[coding](b"") + COMPRESS[coding](ARRAY[50:])
    assert publish(body, **{"Content-Encoding": coding}).json()["received"] == 2


@coding
def test_the_same_publish_compressed_and_not_is_one_publish(coding: str, publish: Publish) -> None:
    first = publish(ARRAY, **{"Idempotency-Key": "k"})
    again = publish(COMPRESS[coding](ARRAY), **{"Idempotency-Key": "k", "Content-Encoding": coding})
    assert (again.status_code, again.json()) == (202, first.json())
    other = publish(COMPRESS[coding](ONE), **{"Idempotency-Key": "k", "Content-Encoding": coding})
    assert other.status_code == 422


def test_the_same_publish_as_lines_is_one_publish(publish: Publish) -> None:
    first = publish([event("1"), event("2", payload=None, timestamp=None)], **{"Idempotency-Key": "k"})
    lines = b"\n".join(json.dumps(one).encode() for one in (event("1"), {**event("2"), "payload": {}}))
    again = publish(lines, content_type="application/x-ndjson", **{"Idempotency-Key": "k"})
    assert (again.status_code, again.json()) == (202, first.json())


@coding
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda body: body[:-1], "it ended early"),
        (lambda body: body[:5], "ended early"),
        (lambda body: b"x" + body, "is not a whole"),
        (lambda body: ONE, "is not"),
        (lambda body: body + b"x", "behind"),
        (lambda body: body + b"\0" * 100, "behind"),
        (lambda body: body[:12] + bytes([body[12] ^ 255]) + body[13:], ""),
        (lambda body: body[:-3] + bytes([body[-3] ^ 255]) + body[-2:], ""),
    ],
    ids=["cut", "cut early", "begins otherwise", "plain", "a byte more", "padding", "broken", "wrong sum"],
)
def test_a_broken_stream_is_a_400(coding: str, change: Callable[[bytes], bytes], reason: str, publish: Publish) -> None:
    checked = {zstd.CompressionParameter.checksum_flag: 1}
    body = gzip.compress(ONE) if coding == "gzip" else zstd.compress(ONE, options=checked)
    answer = publish(change(body), **{"Content-Encoding": coding})
    assert answer.status_code == 400
    assert reason in answer.json()["detail"]
    assert nothing_accepted()


@coding
def test_more_empty_streams_than_anybody_sends_are_a_400(coding: str, publish: Publish) -> None:
    answer = publish(COMPRESS[coding](b"") * 1001 + COMPRESS[coding](ONE), **{"Content-Encoding": coding})
    assert answer.status_code == 400
    assert "more than 1000" in answer.json()["detail"]


@coding
@pytest.mark.parametrize("over", [0, 1])
def test_the_limit_counts_what_is_decompressed(coding: str, over: int, publish: Publish, settings: Any) -> None:
    settings.PUBLISH_MAX_BYTES = 3_000_000
    body = ONE + b" " * (3_000_000 - len(ONE) + over)
    answer = publish(COMPRESS[coding](body), **{"Content-Encoding": coding})
    assert answer.status_code == (413 if over else 202)


@coding
def test_of_a_bomb_no_more_than_the_limit_is_decompressed(coding: str) -> None:
    bomb = COMPRESS[coding](bytes(200_000_000))
    tracemalloc.start()
    try:
        assert decompress(bomb, coding, limit=1_000_000) is None
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_frame_that_asks_for_a_larger_window_than_http_allows_is_a_400(publish: Publish) -> None:
    options = {zstd.CompressionParameter.window_log: 24, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    body = compressor.compress(ONE, mode=zstd.ZstdCompressor.FLUSH_BLOCK) + compressor.flush()
    answer = publish(body, **{"Content-Encoding": "zstd"})
    assert answer.status_code == 400
    assert "a window of more than 8 MiB" in answer.json()["detail"]


@coding
def test_who_may_not_publish_is_refused_before_anything_is_decompressed(
    coding: str, publish: Publish, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REQUIRE_API_KEY = True
    monkeypatch.setattr(bodies, "decompress", lambda *_, **__: pytest.fail("was decompressed"))
    assert publish(COMPRESS[coding](ONE), **{"Content-Encoding": coding}).status_code == 401


# --- One event a line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["application/x-ndjson", "Application/X-NDJSON; charset=utf-8"])
def test_events_a_line_each_are_accepted(content_type: str, publish: Publish) -> None:
    assert publish(ONE + b"\n\n" + WITH_TIMESTAMP + b"\r\n", content_type=content_type).json()["received"] == 2


def test_an_error_of_a_line_names_it_and_nothing_is_accepted(publish: Publish) -> None:
    answer = publish(ONE + b"\n\n" + b'{"topic": 1}', content_type="application/x-ndjson")
    assert answer.status_code == 400
    assert answer.json()["errors"][0] == {
        "index": 1,
        "field": "topic",
        "message": "must be text, not a number",
        "line": 3,
    }
    assert nothing_accepted()


def test_lines_are_not_taken_for_json_nor_json_for_lines(publish: Publish) -> None:
    assert publish(ONE + b"\n" + ONE).status_code == 400
    assert publish(ARRAY, content_type="application/x-ndjson").status_code == 400
    assert nothing_accepted()


def test_as_many_lines_as_the_limit_are_accepted(publish: Publish, settings: Any) -> None:
    settings.PUBLISH_MAX_EVENTS = 2
    assert publish((ONE + b"\n") * 2, content_type="application/x-ndjson").status_code == 202
    assert publish((ONE + b"\n") * 3, content_type="application/x-ndjson").status_code == 413


# --- Large bodies -----------------------------------------------------------------------------------------------------


@pytest.fixture
def occupied(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Lock]:
    """The turn of large bodies, taken by somebody else."""
    lock = threading.Lock()
    monkeypatch.setattr(memory, "_working", lock)
    monkeypatch.setattr(bodies, "TURN_SECONDS", 0.001)
    with lock:
        yield lock


def large(coding: str) -> dict[str, Any]:
    body = ONE + b" " * 2 * 1024 * 1024
    if coding == "identity":
        return {"body": body}
    return {"body": COMPRESS[coding](body), "Content-Encoding": coding}


@pytest.mark.parametrize("coding", ["identity", *COMPRESS])
def test_a_large_body_waits_for_its_turn_and_is_then_a_503(
    coding: str, publish: Publish, occupied: threading.Lock
) -> None:
    answer = publish(**large(coding))
    assert answer.status_code == 503
    assert int(answer["Retry-After"]) > 0
    assert nothing_accepted()


def test_a_small_body_waits_for_nobody(publish: Publish, occupied: threading.Lock) -> None:
    assert publish(ONE).status_code == 202
    assert publish(gzip.compress(ONE), **{"Content-Encoding": "gzip"}).status_code == 202


@pytest.mark.parametrize("tail", [b"", b"x"], ids=["accepted", "refused"])
def test_a_large_body_gives_its_turn_back(tail: bytes, publish: Publish) -> None:
    for _ in range(2):
        assert publish(**large("identity") | {"body": large("identity")["body"] + tail}).status_code in (202, 400)
    assert not memory._working.locked()


@pytest.mark.parametrize("body", [ONE, ONE + b"x"], ids=["accepted", "refused"])
def test_of_a_body_nothing_is_kept_once_it_is_answered(body: bytes) -> None:
    """DRF's request and response hold each other, and so what they hold, until the garbage collector comes by."""
    stream = Body(body)
    reference = weakref.ref(stream)
    gc.disable()
    try:
        call_wsgi(stream, CONTENT_LENGTH=str(len(body)))
        del stream
        assert reference() is None
        assert {found.sent for found in gc.get_objects() if type(found) is bodies.Body} <= {b""}
    finally:
        gc.enable()


def test_too_many_events_are_a_413_that_says_the_limit(publish: Publish, settings: Any) -> None:
    settings.PUBLISH_MAX_EVENTS = 2
    answer = publish([event(str(n)) for n in range(3)])
    assert answer.status_code == 413
    assert "3 events" in answer.json()["detail"]
    assert "at most 2" in answer.json()["detail"]
    assert nothing_accepted()


def test_as_many_events_as_the_limit_are_accepted(publish: Publish, settings: Any) -> None:
    settings.PUBLISH_MAX_EVENTS = 2
    assert publish([event(str(n)) for n in range(2)]).status_code == 202


def test_too_many_bytes_are_a_413_that_says_the_limit(publish: Publish, settings: Any) -> None:
    settings.PUBLISH_MAX_BYTES = len(ONE) - 1
    answer = publish(ONE)
    assert answer.status_code == 413
    assert str(len(ONE) - 1) in answer.json()["detail"]
    assert nothing_accepted()


def test_as_many_bytes_as_the_limit_are_accepted(publish: Publish, settings: Any) -> None:
    settings.PUBLISH_MAX_BYTES = len(ONE)
    assert publish(ONE).status_code == 202


def test_a_body_that_is_announced_too_large_is_not_read(settings: Any) -> None:
    settings.PUBLISH_MAX_BYTES = 100
    body = Body(ONE)
    assert call_wsgi(body, CONTENT_LENGTH="1000000")[0].startswith("413")
    assert body.was_read == 0


class Body(io.BytesIO):
    """A request body that counts what is read of it."""

    was_read = 0

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        self.was_read += len(part)
        return part


def call_wsgi(body: io.BytesIO, **environ: str) -> tuple[str, dict[str, Any]]:
    """Calls the WSGI app as gunicorn does; gives the status line and the JSON of the answer."""
    statuses: list[str] = []
    request = RequestFactory().post("/publish", content_type="application/json").environ
    request = {**request, "wsgi.input": body, **environ}
    if "HTTP_TRANSFER_ENCODING" in environ:
        del request["CONTENT_LENGTH"]
    # The end of a request closes connections that Django takes for stale, this test's transaction among them.
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    try:
        answer = get_wsgi_application()(request, lambda status, _headers: statuses.append(status))
        return statuses[0], json.loads(b"".join(answer))
    finally:
        for signal in (request_started, request_finished):
            signal.connect(close_old_connections)


@pytest.mark.parametrize("encoding", ["chunked", "Chunked"])
def test_a_chunked_body_is_accepted(encoding: str) -> None:
    status, answer = call_wsgi(Body(ARRAY), HTTP_TRANSFER_ENCODING=encoding)
    assert status.startswith("202")
    assert answer["received"] == 2


def test_a_chunked_body_beyond_the_limit_is_a_413_that_is_read_no_further(settings: Any) -> None:
    settings.PUBLISH_MAX_BYTES = 1000
    body = Body(b"[" + b" " * 1_000_000)
    assert call_wsgi(body, HTTP_TRANSFER_ENCODING="chunked")[0].startswith("413")
    assert body.was_read == 1001
    assert nothing_accepted()


def test_a_chunked_body_as_large_as_the_limit_is_accepted(settings: Any) -> None:
    settings.PUBLISH_MAX_BYTES = len(ONE)
    assert call_wsgi(Body(ONE), HTTP_TRANSFER_ENCODING="chunked")[0].startswith("202")


@pytest.mark.parametrize("environ", [{"HTTP_TRANSFER_ENCODING": "chunked"}, {"CONTENT_LENGTH": "99"}])
def test_a_body_that_breaks_off_is_a_400(environ: dict[str, str]) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionResetError("reset by peer")

    status, answer = call_wsgi(Broken(), **environ)
    assert status.startswith("400")
    assert "ended early" in answer["detail"]
    assert nothing_accepted()


# --- Out of order -----------------------------------------------------------------------------------------------------


def broken(*_: Any, **__: Any) -> None:
    raise ConnectionError("nobody there")


@pytest.mark.parametrize("where", [(inbox.current_app, "send_task"), (cache, "add")], ids=["broker", "cache"])
def test_a_publish_is_accepted_while_the_doorbell_is_broken(
    where: tuple[Any, str], publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*where, broken)
    assert publish(event()).status_code == 202


def test_a_full_inbox_is_a_503_with_retry_after(publish: Publish, settings: Any) -> None:
    settings.INBOX_MAX_EVENTS = 1
    publish(event("1"))
    answer = publish(event("2"))
    assert answer.status_code == 503
    assert int(answer["Retry-After"]) > 0
    assert "nothing was accepted" in answer.json()["detail"]
    assert Batch.objects.count() == 1


@pytest.mark.parametrize("statement", ["INSERT", "SELECT"])
def test_a_database_that_does_not_answer_is_a_503_with_retry_after(statement: str, publish: Publish) -> None:
    def refuse(execute: Any, sql: str, *rest: Any) -> Any:
        if sql.startswith(statement):
            raise OperationalError("disk I/O error")
        return execute(sql, *rest)

    with connection.execute_wrapper(refuse):
        answer = publish(event())
    assert answer.status_code == 503
    assert int(answer["Retry-After"]) > 0
    assert "disk" not in answer.json()["detail"]
    assert nothing_accepted()


def test_a_mistake_of_ours_is_a_500_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "accept", lambda *_, **__: 1 / 0)
    answer = Client(raise_request_exception=False).post("/publish", event(), content_type="application/json")
    assert answer.status_code == 500
    assert answer.json()["detail"]


# --- Idempotency-Key --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["k", '"k"'], ids=["bare", "quoted"])
def test_the_same_publish_again_gets_the_first_answer(again: str, publish: Publish) -> None:
    first = publish(event(), **{"Idempotency-Key": "k"})
    second = publish(event(), **{"Idempotency-Key": again})
    assert (second.status_code, second.json(), second["Location"]) == (202, first.json(), first["Location"])
    assert Batch.objects.count() == 1


def test_another_body_under_the_same_key_is_a_422(publish: Publish) -> None:
    publish(event("1"), **{"Idempotency-Key": "k"})
    answer = publish(event("2"), **{"Idempotency-Key": "k"})
    assert answer.status_code == 422
    assert "Idempotency-Key" in answer.json()["detail"]
    assert Batch.objects.count() == 1


@pytest.mark.parametrize("key", ["", '""', "k" * 256])
def test_a_key_of_no_or_too_many_characters_is_a_400(key: str, publish: Publish) -> None:
    assert publish(event(), **{"Idempotency-Key": key}).status_code == 400
    assert nothing_accepted()


def test_the_longest_key_is_accepted(publish: Publish) -> None:
    assert publish(event(), **{"Idempotency-Key": "k" * 255}).status_code == 202


# --- Prefer: wait -----------------------------------------------------------------------------------------------------


def test_a_wait_that_loses_the_database_is_a_202(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on disk; a 503 would say that it is not."""

    def fail(*_: Any, **__: Any) -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(Batch, "refresh_from_db", fail)
    assert publish(event(), Prefer="wait=5").status_code == 202


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between two looks at a batch, with a clock that only they move on."""
    made: list[float] = []
    monkeypatch.setattr(publishing.time, "monotonic", lambda: sum(made))
    monkeypatch.setattr(publishing.time, "sleep", made.append)
    return made


@pytest.mark.parametrize(
    "prefer", ["wait=5", "WAIT=5", "respond-async, wait=5", "wait = 5", 'wait="5"', "handling=lenient; wait=5"]
)
def test_who_waits_gets_the_processed_receipt(
    prefer: str, publish: Publish, drain: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing.time, "sleep", lambda _: drain())
    answer = publish([event("1"), event("1")], Prefer=prefer)
    assert answer.status_code == 200
    receipt = answer.json()
    assert (receipt["status"], receipt["received"], receipt["unique"], receipt["duplicates"]) == ("processed", 2, 1, 1)
    assert receipt["processed_at"]
    assert answer["Location"] == f"/batches/{receipt['batch_id']}"
    assert answer["Preference-Applied"] == "wait=5"


def test_a_batch_that_is_not_processed_in_time_is_a_202(publish: Publish, looks: list[float]) -> None:
    answer = publish(event(), Prefer="wait=5")
    assert answer.status_code == 202
    assert answer.json()["status"] == "accepted"
    assert 4.5 < sum(looks) <= 5


def test_nobody_waits_longer_than_30_seconds(publish: Publish, looks: list[float]) -> None:
    publish(event(), Prefer="wait=31")
    assert 29.5 < sum(looks) <= 30


def test_looks_get_rarer(publish: Publish, looks: list[float]) -> None:
    publish(event(), Prefer="wait=5")
    assert looks[:7] == [0.01, 0.02, 0.04, 0.08, 0.16, 0.16, 0.16]


@pytest.mark.parametrize("prefer", ["", "wait", "wait=", "wait=x", "wait=-1", "wait=0", "await=5", "return=minimal"])
def test_a_preference_that_asks_for_no_wait_is_passed_over(prefer: str, publish: Publish, looks: list[float]) -> None:
    assert publish(event(), Prefer=prefer).status_code == 202
    assert looks == []


def test_a_batch_that_failed_is_not_waited_for_any_longer(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        publishing.time, "sleep", lambda _: Batch.objects.update(status=Batch.Status.FAILED, error="why")
    )
    answer = publish(event(), Prefer="wait=5")
    assert (answer.status_code, answer.json()["status"], answer.json()["error"]) == (200, "failed", "why")


def test_while_many_wait_others_are_answered_at_once(
    publish: Publish, looks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_waiters", threading.BoundedSemaphore(1))
    with publishing._waiters:
        assert publish(event("1"), Prefer="wait=5").status_code == 202
        assert looks == []
    publish(event("2"), Prefer="wait=5")
    assert looks


def test_a_wait_that_is_over_gives_its_place_back(
    publish: Publish, looks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_waiters", threading.BoundedSemaphore(1))
    publish(event("1"), Prefer="wait=1")
    before = len(looks)
    publish(event("2"), Prefer="wait=1")
    assert len(looks) > before


# --- The story --------------------------------------------------------------------------------------------------------


def test_5000_events_with_1000_duplicates_are_4000_twice_over(publish: Publish, drain: Drain, client: Client) -> None:
    assert client.get("/events").json()["count"] == 0
    ids = [*range(4000), *range(1000)]
    load = [[event(str(n)) for n in ids[start : start + 500]] for start in range(0, 5000, 500)]
    for batch in load:
        publish(batch)
    drain()
    first = client.get("/stats").json()
    for batch in load:
        publish(batch)
    drain()
    second = client.get("/stats").json()
    names = ("received", "unique_processed", "duplicate_dropped")
    assert [first[name] for name in names] == [5000, 4000, 1000]
    assert [second[name] for name in names] == [10000, 4000, 6000]
    assert Event.objects.count() == 4000
