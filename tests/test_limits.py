"""Slow, large and broken requests against a real gunicorn: none of them holds a thread that others need."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest
from django.test import Client
from pytest_django import Settings

from aggregator_project.gathering import LARGEST_HEAD, Arriving
from events.api import events as listing
from tests.conftest import event
from tests.server import Server, serving

#: More than the threads of the service, which has two processes with four each.
MANY = 50
HEAD = b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    shorter = "from aggregator_project import gathering\ngathering.ARRIVAL_SECONDS = 3\ngathering.STALL_SECONDS = 2\n"
    shorter += "gathering.MOST_HELD = 6_000_000"
    with serving(tmp_path_factory.mktemp("limits"), overrides=shorter, PUBLISH_MAX_BYTES="2000000") as server:
        yield server


def assert_serves(server: Server) -> None:
    """The service takes a publish, in less time than one of the slow ones has."""
    for _ in range(5):
        assert httpx.post(f"{server.url}/publish", json=event(), timeout=2.5).status_code == 202


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
    _drain(server)
    with ExitStack() as stack:
        for _ in range(20):
            deaf = stack.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", server.port))
            deaf.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # Twenty of them, eight threads: each has two seconds.
        assert httpx.get(f"{server.url}/health", timeout=20).status_code == 200
    assert "Traceback" not in server.log


def _drain(server: Server) -> None:
    import os
    import subprocess
    import sys

    from django.conf import settings

    subprocess.run(
        [
            sys.executable,
            "manage.py",
            "shell",
            "-v0",
            "-c",
            "from events import store\nwhile store.store_chunk()[0].batches: pass",
        ],
        cwd=settings.BASE_DIR,
        env={
            **{name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
            "DATA_DIR": str(server.folder),
            "DJANGO_SETTINGS_MODULE": "aggregator_project.settings",
        },
        check=True,
    )


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
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n[]",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 9" + b"9" * 30 + b"\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n[]\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_request_is_a_4xx_or_a_closed_door(server: Server, request_: bytes) -> None:
    with server.connect() as opened:
        opened.sendall(request_)
        opened.shutdown(socket.SHUT_WR)
        answer = opened.recv(1000)
    assert answer == b"" or 400 <= status(answer) < 500 or status(answer) == 505
    assert_serves(server)


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


# --- What has to go on working ----------------------------------------------------------------------------------------


def test_a_publish_in_single_bytes_arrives(server: Server) -> None:
    body = json.dumps(event()).encode()
    request = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert status(server.say(*(bytes([byte]) for byte in request))) == 202


def test_a_publish_in_chunks_with_a_trailer_arrives(server: Server) -> None:
    body = json.dumps(event()).encode()
    chunks = b"%x;part=1\r\n%s\r\n%x\r\n%s\r\n" % (10, body[:10], len(body) - 10, body[10:])
    request = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    assert status(server.say(request, b"0\r\nX-Trailer: 1\r\n", b"\r\n")) == 202


def test_requests_sent_at_once_are_answered_in_turn(server: Server) -> None:
    body = json.dumps(event()).encode()
    publish = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = server.say(publish + publish + last[:20], last[20:])
    assert [answer.count(b"HTTP/1.1 " + code) for code in (b"202", b"200")] == [2, 1]


def test_who_waits_to_be_told_to_go_on_is_told(server: Server) -> None:
    body = json.dumps(event()).encode()
    with server.connect() as opened:
        opened.sendall(HEAD + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert opened.recv(1000).startswith(b"HTTP/1.1 100")
        opened.sendall(body)
        answer = b""
        while data := opened.recv(65536):
            answer += data
    assert b" 202 " in answer


def test_a_connection_is_kept(server: Server) -> None:
    with httpx.Client() as client:
        for _ in range(20):
            answer = client.post(f"{server.url}/publish", json=event())
            assert answer.status_code == 202
            assert "close" not in answer.headers.get("Connection", "")


def test_who_leaves_in_the_middle_of_a_body_has_published_nothing(server: Server) -> None:
    before = httpx.get(f"{server.url}/stats").json()["received"]
    with server.connect() as opened:
        body = json.dumps(event()).encode()
        opened.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (len(body) + 1) + body)
        opened.shutdown(socket.SHUT_WR)
        assert status(opened.recv(1000)) == 400
    assert httpx.get(f"{server.url}/stats").json()["received"] == before


# --- The end of a request ---------------------------------------------------------------------------------------------


def arrived(settings: Settings, *parts: bytes) -> list[bool]:
    """Whether the request is complete after each of the parts."""
    settings.PUBLISH_MAX_BYTES = 1000
    arriving = Arriving(0)
    found = []
    for part in parts:
        arriving.add(part)
        found.append(arriving.complete)
    return found


@pytest.mark.parametrize(
    ("parts", "complete"),
    [
        ([b"GET / HTTP/1.1\r\n", b"A: b\r\n\r", b"\n"], [False, False, True]),
        ([b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\n", b"ab", b"c"], [False, False, True]),
        ([b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"], [True]),
        # Refused by what it announces: the body is not waited for.
        ([b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n"], [True]),
        (
            [b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", b"0\r\n", b"\r\n"],
            [False] * 3 + [True],
        ),
        ([b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], [True]),
        ([b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"x" * 70_000], [False, True]),
        # What looks like the last chunk stands in one; another request comes behind the last one.
        (
            [b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n\r\n0\r\n\r\n", b"\r\n0\r\n", b"\r\nGET /"],
            [False, False, True],
        ),
        ([b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n", b"\r\n"], [False, True]),
        # A size that would lead back to the chunk before, over and over: for the parser to refuse.
        ([b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n-11\r\n"], [True]),
        # Both: for the parser to refuse.
        ([b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n"], [True]),
        # A header that only looks like one, in the body and in another's value.
        ([b"GET / HTTP/1.1\r\nX: content-length: 5\r\n\r\n"], [True]),
    ],
)
def test_the_end_of_a_request_is_found(settings: Settings, parts: list[bytes], complete: list[bool]) -> None:
    assert arrived(settings, *parts) == complete


# --- Streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_half_the_threads_may_stream_and_the_next_one_is_asked_to_wait(settings: Settings) -> None:
    half = max(1, settings.WEB_THREADS // 2)
    listing._streams = threading.BoundedSemaphore(half)
    streams = [listing.Stream(iter([])) for _ in range(half)]

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
    assert listing.Stream(iter([]))
