"""Slow, large and broken requests against a real gunicorn: none of them holds a thread that others need."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.conf import settings as django_settings
from django.http import StreamingHttpResponse
from django.test import Client, RequestFactory
from pytest_django import Settings

from aggregator_project.gathering import LARGEST_HEAD
from aggregator_project.middleware import without_body_for_head
from events.api import events as listing
from tests.conftest import event
from tests.faults.service import until
from tests.server import Server, serving

# They share a service.
pytestmark = pytest.mark.xdist_group("limits")

#: More than the threads of the service, which has two processes with four each.
MANY = 50
HEAD = b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    shorter = "from aggregator_project import gathering\ngathering.ARRIVAL_SECONDS = 3\ngathering.STALL_SECONDS = 2\n"
    shorter += "gathering.MOST_HELD = 6_000_000"
    with serving(tmp_path_factory.mktemp("limits"), overrides=shorter, PUBLISH_MAX_BYTES="2000000") as server:
        yield server


def assert_serves(server: Server, seconds: float = 2.5) -> None:
    """The service takes a publish, by default in less time than one of the slow ones has."""
    for _ in range(5):
        assert httpx.post(f"{server.url}/publish", json=event(), timeout=seconds).status_code == 202


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# --- Slow clients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "beginning",
    [
        pytest.param(b"", id="say nothing"),
        pytest.param(b"POST /publish HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", id="do not end their headers"),
        pytest.param(HEAD + b"Content-Length: 100000\r\n\r\n[", id="do not end their body"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n[", id="do not end a chunk"),
        pytest.param(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffff\r\n\r\n0\r\n\r\n", id="look as if they ended their chunks"
        ),
        pytest.param(HEAD + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n", id="wait to be told to go on"),
        pytest.param(HEAD + b"Content-Length: 99999999\r\n\r\n[", id="announce more than they may send"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nCookie: csrftoken=abcdefghijklmnopqrstuvwxyz012345\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 99999999\r\n\r\n--x\r\n",
            id="upload to a page",
        ),
        pytest.param(b"GET /health HTTP/1.0\r\n\r\n", id="do not close their end"),
    ],
)
def test_the_service_serves_while_fifty_clients(server: Server, beginning: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(MANY):
            stack.enter_context(server.connect()).sendall(beginning)
        assert_serves(server)


def test_a_byte_now_and_then_buys_no_more_time(server: Server) -> None:
    with server.connect() as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        slow.settimeout(0.5)
        answer = b""
        for _ in range(60):
            try:
                slow.sendall(b"x")
                answer += slow.recv(1000)
            except TimeoutError:
                continue
            except OSError:
                break
            if answer:
                break
        assert status(answer) == 408


def test_who_says_nothing_is_let_go_without_a_word(server: Server) -> None:
    with server.connect() as silent:
        assert silent.recv(1000) == b""


def test_who_does_not_read_holds_a_thread_for_a_moment_only(server: Server) -> None:
    # Four megabytes in one answer, more than the buffers between here and there hold.
    for number in range(4):
        big = event(f"big{number}", payload={"x": "y" * 1_000_000})
        assert httpx.post(f"{server.url}/publish", json=big, timeout=20).status_code == 202
    server.manage("shell", "-v0", "-c", "from events import store\nwhile store.store_chunk()[0].batches: pass")
    with ExitStack() as stack:
        for _ in range(20):
            deaf = stack.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", server.port))
            deaf.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # Twenty of them, eight threads: each has two seconds.
        assert httpx.get(f"{server.url}/health", timeout=20).status_code == 200
    assert "Traceback" not in server.log


# --- What a request may be --------------------------------------------------------------------------------------------


def test_a_line_or_headers_that_are_too_long_are_refused(server: Server) -> None:
    line = b"GET /events?topic=" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 9000 + b"\r\n\r\n"
    many = b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: 1\r\n" * 70 + b"\r\n"
    endless = b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: 1\r\n" * (LARGEST_HEAD // 11 + 10)
    assert [status(server.say(request)) for request in (line, one, many, endless)] == [414, 431, 431, 431]
    assert_serves(server)


def test_three_filters_as_long_as_they_may_be_fit(server: Server) -> None:
    answer = httpx.get(f"{server.url}/events", params=dict.fromkeys(("topic", "source", "event_id"), "ab" * 127))
    assert answer.status_code == 200


def test_a_body_beyond_the_limit_is_a_413_however_it_comes(server: Server) -> None:
    body = b"[" + b" " * 2_000_001 + b"]"
    told = server.say(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
    chunked = httpx.post(
        f"{server.url}/publish",
        content=(body[at : at + 100_000] for at in range(0, len(body), 100_000)),
        headers={"Content-Type": "application/json"},
        timeout=20,
    )
    assert (status(told), chunked.status_code) == (413, 413)
    assert_serves(server)


@pytest.mark.parametrize(
    "request_",
    [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n", b"\r\n\r\n"],
)
def test_what_is_no_request_is_a_400(server: Server, request_: bytes) -> None:
    assert status(server.say(request_)) == 400
    assert_serves(server)


def test_two_hosts_are_a_400(server: Server) -> None:
    assert status(server.say(b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")) == 400


def test_what_is_held_of_incomplete_requests_is_bounded(server: Server) -> None:
    # Nineteen megabytes for two processes, which hold six each.
    beginning = HEAD + b"Content-Length: 1950000\r\n\r\n[" + b" " * 1_900_000
    answers = []
    with ExitStack() as stack:
        for _ in range(10):
            opened = stack.enter_context(server.connect())
            with suppress(ConnectionError):
                opened.sendall(beginning)
                opened.settimeout(0.2)
            with suppress(TimeoutError, ConnectionError):
                answers.append(opened.recv(1000))
    assert [answer for answer in answers if b" 503 " in answer and b"Retry-After" in answer]
    assert_serves(server)


LARGE = 10 * 1024 * 1024 - 300


def large_body(form: str, number: int) -> bytes:
    if form == "one event":
        return json.dumps(event(f"one-{number}", payload={"x": "y" * LARGE})).encode()
    if form == "many events":
        return json.dumps([event(f"{number}-{at}", payload={"x": "y" * 900}) for at in range(10_000)]).encode()
    return b"[" + b" " * LARGE + b"}"


def test_bodies_in_flight_leave_a_process_below_400_mb(tmp_path: Path) -> None:
    """At the default limits; most bodies arrive at once, and what does not fit is told to come again."""
    answers = []

    def send(number: int) -> None:
        form = ("one event", "many events", "not JSON", "in chunks")[number % 4]
        body = large_body("one event" if form == "in chunks" else form, number)
        with server.connect() as opened, suppress(ConnectionError):
            opened.settimeout(120)
            if form == "in chunks":
                opened.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
                for at in range(0, len(body), 65536):
                    part = body[at : at + 65536]
                    opened.sendall(b"%x\r\n%s\r\n" % (len(part), part))
                opened.sendall(b"0\r\n\r\n")
            else:
                opened.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            answers.append(status(opened.recv(1000)))

    with serving(tmp_path) as server:
        senders = [threading.Thread(target=send, args=(number,)) for number in range(24)]
        for sender in senders:
            sender.start()
        most = 0
        while any(sender.is_alive() for sender in senders):
            most = max(most, *(worker.memory_info().rss for worker in server.workers))
            senders[0].join(0.01)
        kept = max(worker.memory_info().rss for worker in server.workers)
        assert "Traceback" not in server.log
    assert {202, 400} <= set(answers) <= {202, 400, 503}
    assert most < 400_000_000
    # Nothing of them stays: not in reference cycles, nor in statements of SQLite, nor in pieces that fit no other body.
    assert kept < 200_000_000


def test_a_large_body_leaves_no_room_for_large_ones_but_for_small_ones(tmp_path: Path) -> None:
    """What is held and what is worked on are bounded for large bodies only."""
    tight = "from aggregator_project import gathering\ngathering.MOST_HELD = 1_000_000\ngathering.MOST_WORKED_ON = 1"
    with serving(tmp_path, overrides=tight, WEB_PROCESSES="1") as server, ExitStack() as stack:
        beginning = HEAD + b"Content-Length: 2000000\r\n\r\n[" + b" " * 900_000
        stack.enter_context(server.connect()).sendall(beginning)
        # Complete as it is, and refused all the same: the bound holds for what is about to be worked on too.
        body = json.dumps(event(payload={"x": "y" * 200_000})).encode()
        refused = httpx.post(f"{server.url}/publish", content=body, headers={"Content-Type": "application/json"})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
        assert refused.json()["detail"]
        assert_serves(server)


# --- Connections ------------------------------------------------------------------------------------------------------


def keep(server: Server, stack: ExitStack) -> bytes:
    """Opens a connection, has one request answered on it, and leaves it open."""
    opened = stack.enter_context(server.connect())
    opened.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return opened.recv(65536).lower()


def test_an_idle_connection_stays_open_for_longer_than_load_balancers_keep_theirs() -> None:
    assert django_settings.KEEPALIVE_SECONDS > 90


def test_an_idle_connection_is_closed_after_keepalive_seconds(tmp_path: Path) -> None:
    with serving(tmp_path, KEEPALIVE_SECONDS="1") as server, server.connect() as opened:
        opened.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while data := opened.recv(65536):
            answer += data
        assert b"keep-alive" in answer.lower()
        assert answer.endswith(b'{"status":"healthy"}')


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with places for twelve connections, eight of which may be idle."""
    folder = tmp_path_factory.mktemp("narrow")
    few = "worker_connections = 12"
    with serving(folder, overrides=few, WEB_PROCESSES="1", WEB_THREADS="4", KEEPALIVE_SECONDS="3600") as server:
        yield server


def test_idle_connections_hold_places_but_no_threads(narrow: Server) -> None:
    with ExitStack() as stack:
        # One is counted a moment after its answer, so the next one may still be kept.
        kept = next(number for number in range(12) if b"connection: close" in keep(narrow, stack))
        assert kept >= 8
        assert_serves(narrow, 30)


def test_every_end_of_a_connection_gives_its_place_back(narrow: Server) -> None:
    endings = [
        b"",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: localhost\n\n",
        HEAD + b"Content-Length: 99999999\r\n\r\n[",
        HEAD + b"Content-Length: 9\r\n\r\n[",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n[",
        HEAD + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n",
    ]
    for _ in range(3):
        for sent in endings:
            with narrow.connect() as opened:
                opened.sendall(sent)
            with narrow.connect() as opened, suppress(ConnectionError):
                opened.sendall(sent)
                opened.shutdown(socket.SHUT_WR)
                opened.recv(65536)
    assert_serves(narrow, 30)


def test_a_service_that_stops_does_not_wait_for_idle_connections(tmp_path: Path) -> None:
    with serving(tmp_path, KEEPALIVE_SECONDS="3600") as server, ExitStack() as stack:
        for _ in range(20):
            assert b"keep-alive" in keep(server, stack)
        server.process.terminate()
        assert server.process.wait(20) == 0


def open_many(server: Server, stack: ExitStack, number: int) -> None:
    for _ in range(number):
        opened = stack.enter_context(socket.socket())
        opened.settimeout(30)
        opened.connect(("127.0.0.1", server.port))


def both(server: Server) -> list[int]:
    """The ids of the two processes that answer requests; the first may answer before the second is there."""
    until(lambda: len(server.workers) == 2, "both processes are there")
    return [worker.pid for worker in server.workers]


def test_a_soft_limit_of_files_is_raised(tmp_path: Path) -> None:
    """macOS begins with 256."""
    with serving(tmp_path, ulimit="-Sn 256") as server, ExitStack() as stack:
        before = both(server)
        open_many(server, stack, 620)
        assert_serves(server, 30)
        assert [worker.pid for worker in server.workers] == before


@pytest.mark.parametrize("overrides", ["", "worker_connections = 800"], ids=["known", "not known"])
def test_connections_beyond_the_limit_of_files_wait(tmp_path: Path, overrides: str) -> None:
    with serving(tmp_path, ulimit="-n 256", overrides=overrides) as server:
        before = both(server)
        with ExitStack() as stack:
            open_many(server, stack, 620)
            if overrides:
                until(lambda: "no file is left" in server.log, "it says that no file is left")
        assert_serves(server, 30)
        assert [worker.pid for worker in server.workers] == before
        assert ("no file is left" in server.log) == bool(overrides)


# --- What has to go on working ----------------------------------------------------------------------------------------


def test_a_publish_in_single_bytes_arrives(server: Server) -> None:
    body = json.dumps(event()).encode()
    request = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert status(server.say(*(bytes([byte]) for byte in request))) == 202


def test_requests_sent_at_once_are_answered_in_turn(server: Server) -> None:
    body = json.dumps(event()).encode()
    publish = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = server.say(publish + publish + last[:20], last[20:])
    assert [answer.count(b"HTTP/1.1 " + code) for code in (b"202", b"200")] == [2, 1]


def test_a_connection_is_kept(server: Server) -> None:
    with httpx.Client() as client:
        for _ in range(20):
            answer = client.post(f"{server.url}/publish", json=event())
            assert answer.status_code == 202
            assert "close" not in answer.headers.get("Connection", "")


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        pytest.param(b"POST /publish", 415, id="a type that is not taken"),
        pytest.param(b"POST /nowhere", 404, id="no such address"),
        pytest.param(b"PUT /publish", 405, id="no such method"),
        pytest.param(b"GET /stats", 200, id="a body that nobody reads"),
    ],
)
def test_a_connection_is_kept_when_the_view_has_not_read_the_body(server: Server, line: bytes, refused: int) -> None:
    headers = b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answers = re.findall(rb"HTTP/1\.1 (\d+) ", server.say(line + headers, last))
    assert [int(answer) for answer in answers] == [refused, 200]


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(HEAD + b"Content-Length: 2000001\r\n\r\n[", id="its length is announced"),
        pytest.param(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n1e8481\r\n" + b" " * 2_000_001, id="it comes in chunks"
        ),
    ],
)
def test_the_answer_to_a_body_of_which_more_may_come_says_that_the_connection_ends(
    server: Server, request_: bytes
) -> None:
    told = server.say(request_)
    assert status(told) == 413
    assert b"\r\nConnection: close\r\n" in told


def test_who_leaves_in_the_middle_of_a_body_has_published_nothing(server: Server) -> None:
    before = httpx.get(f"{server.url}/stats").json()["received"]
    with server.connect() as opened:
        body = json.dumps(event()).encode()
        opened.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (len(body) + 1) + body)
        opened.shutdown(socket.SHUT_WR)
        assert status(opened.recv(1000)) == 400
    assert httpx.get(f"{server.url}/stats").json()["received"] == before


@pytest.mark.parametrize("path", ["/health", "/stats", "/events", "/docs", "/nowhere"])
@pytest.mark.parametrize("accept", ["*/*", "text/csv"])
def test_head_has_the_headers_of_get_and_no_line_in_the_log(server: Server, path: str, accept: str) -> None:
    with httpx.Client(base_url=server.url, headers={"Accept": accept}) as client:
        get, head = client.get(path), client.head(path)
        assert head.status_code == get.status_code
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
        assert head.headers.get("Content-Length") in (get.headers.get("Content-Length"), None)
        assert client.get("/health").status_code == 200
    assert "no-body response" not in server.log


@pytest.mark.django_db
def test_an_export_that_head_asks_for_is_not_put_together() -> None:
    closed = threading.Event()

    class Export(Iterator[bytes]):
        def __next__(self) -> bytes:
            raise AssertionError("somebody read it")

        def close(self) -> None:
            closed.set()

    middleware = without_body_for_head(lambda _request: StreamingHttpResponse(Export()))
    response = middleware(RequestFactory().head("/events"))
    assert list(response) == []
    response.close()
    assert closed.is_set()


# --- Streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_half_the_threads_may_stream_and_the_next_one_is_asked_to_wait(settings: Settings) -> None:
    half = max(1, settings.WEB_THREADS // 2)
    listing._streams = threading.BoundedSemaphore(half)
    streams = [listing.Stream(iter([]), may_go_on=lambda: True) for _ in range(half)]

    def ask(**headers: str) -> Any:
        return Client().get("/events", headers=headers)

    refused = ask(Accept="text/csv")
    assert (refused.status_code, refused["Retry-After"]) == (503, "2")
    assert ask().status_code == 200
    streams[0].close()
    # Closed twice, its place is still one.
    streams[0].close()
    answer = ask(Accept="application/x-ndjson")
    assert answer.status_code == 200
    assert ask(Accept="application/x-ndjson").status_code == 503
    # One that nobody began to read.
    streams.clear()
    assert listing.Stream(iter([]), may_go_on=lambda: True)
