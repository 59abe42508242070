"""Where a request ends, asked of a real gunicorn: what is not certain is refused and never taken for a second one."""

import json
from collections.abc import Iterator
from contextlib import suppress

import pytest

from aggregator_project.gathering import LARGEST_TRAILERS, LONGEST_CHUNK_LINE, MOST_CHUNKS
from tests.conftest import event
from tests.server import Server, serving

# They share a service.
pytestmark = pytest.mark.xdist_group("framing")

HEAD = b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
#: A body that is a request itself: who takes it for one answers twice.
SMUGGLED = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
#: Seconds to wait for an answer where none may come.
A_MOMENT = 0.2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("framing"), PUBLISH_MAX_BYTES="2000000") as server:
        yield server


def converse(server: Server, parts: list[bytes]) -> bytes:
    """Sends the parts, each after a look for an answer to the ones before, and returns all that comes until the end."""
    answer = b""
    with server.connect() as opened:
        for part in parts:
            with suppress(ConnectionError):
                opened.sendall(part)
            if part is not parts[-1]:
                opened.settimeout(A_MOMENT)
                with suppress(TimeoutError, ConnectionError):
                    answer += opened.recv(65536)
        opened.settimeout(30)
        with suppress(ConnectionError):
            while data := opened.recv(65536):
                answer += data
    return answer


def say_by_bytes(server: Server, request: bytes) -> bytes:
    answer = b""
    with server.connect() as opened, suppress(ConnectionError):
        for byte in request:
            opened.sendall(bytes([byte]))
        while data := opened.recv(65536):
            answer += data
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(part.split(b" ", 1)[0]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def assert_refused(answer: bytes, status: int) -> None:
    """One answer, in JSON, and the end of the connection, which the callers have waited for."""
    assert statuses(answer) == [status], answer
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head.lower()
    assert json.loads(body)["detail"]


LENGTH = b"Content-Length: %d\r\n" % len(SMUGGLED)

UNCERTAIN = [
    pytest.param(b"Content-Length: " + b"0" * 23 + b"41\r\n", 400, id="more digits than anybody needs"),
    pytest.param(b"Content-Length: +41\r\n", 400, id="a sign"),
    pytest.param(b"Content-Length: -41\r\n", 400, id="a negative length"),
    pytest.param(b"Content-Length: 0x29\r\n", 400, id="hexadecimal"),
    pytest.param(b"Content-Length: 4_1\r\n", 400, id="an underscore"),
    pytest.param(b"Content-Length: 41.0\r\n", 400, id="a fraction"),
    pytest.param(b"Content-Length: 4 1\r\n", 400, id="a space inside"),
    pytest.param(b"Content-Length: \r\n", 400, id="no length"),
    pytest.param(b"Content-Length: \xb2\r\n", 400, id="a digit that is not ASCII"),
    pytest.param(b"Content-Length: \xd9\xa4\xd9\xa1\r\n", 400, id="digits that are not ASCII"),
    pytest.param(b"Content-Length: 41, 41\r\n", 400, id="a list"),
    pytest.param(LENGTH + LENGTH, 400, id="the same length twice"),
    pytest.param(b"Content-Length: 0\r\n" + LENGTH, 400, id="two lengths"),
    pytest.param(LENGTH + b"Transfer-Encoding: chunked\r\n", 400, id="a length and chunks"),
    pytest.param(b"Transfer-Encoding: chunked\r\n" + LENGTH, 400, id="chunks and a length"),
    pytest.param(b"Content-Length : 41\r\n", 400, id="a space before the colon"),
    pytest.param(b"Content-Length\t: 41\r\n", 400, id="a tab before the colon"),
    pytest.param(b" Content-Length: 41\r\n", 400, id="a space before the name"),
    pytest.param(b"Content-Length\r\n", 400, id="no colon"),
    pytest.param(b"Content-Length:\r\n 41\r\n", 400, id="a folded length"),
    pytest.param(b"X-Folded: a\r\n Content-Length: 41\r\n", 400, id="a length that is folded in"),
    pytest.param(b"X-Bare: a\nContent-Length: 41\r\n", 400, id="a bare LF"),
    pytest.param(b"X-Bare: a\rContent-Length: 41\r\n", 400, id="a bare CR"),
    pytest.param(b"X-Bare: a\n\r\n", 400, id="an end of the head that begins with a bare LF"),
    pytest.param(b"X-Bare: a\r\n\n", 400, id="an end of the head that is a bare LF"),
    pytest.param(b"Content-Length: 41\x00\r\n", 400, id="a NUL in the value"),
    pytest.param(b"Content-Length\x00: 41\r\n", 400, id="a NUL in the name"),
    pytest.param(b"Content-Length: \x0b41\r\n", 400, id="a vertical tab"),
    pytest.param(b"Transfer-Encoding: gzip, chunked\r\n", 501, id="gzip and chunked"),
    pytest.param(b"Transfer-Encoding: identity, chunked\r\n", 501, id="identity and chunked"),
    pytest.param(b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", 501, id="gzip and chunked in two lines"),
    pytest.param(b"Transfer-Encoding: xchunked\r\n", 501, id="an unknown coding"),
    pytest.param(b"Transfer-Encoding: chunked;q=1\r\n", 501, id="a parameter"),
    pytest.param(b'Transfer-Encoding: "chunked"\r\n', 501, id="quotes"),
    pytest.param(b"Transfer-Encoding: chunked,\r\n", 501, id="an empty coding"),
    pytest.param(b"Transfer-Encoding: \r\n", 501, id="no coding"),
    # RFC 9112 section 6.3: where chunked does not come last, the length cannot be known.
    pytest.param(b"Transfer-Encoding: gzip\r\n", 400, id="gzip alone"),
    pytest.param(b"Transfer-Encoding: identity\r\n", 400, id="identity alone"),
    pytest.param(b"Transfer-Encoding: chunked, gzip\r\n", 400, id="gzip behind chunked"),
    pytest.param(b"Transfer-Encoding: chunked, chunked\r\n", 400, id="chunked twice"),
    pytest.param(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400, id="chunked in two lines"),
    pytest.param(b"Transfer-Encoding: chun\r\n ked\r\n", 400, id="a folded coding"),
    pytest.param(b"Transfer-Encoding : chunked\r\n", 400, id="a coding with a space before the colon"),
]


@pytest.mark.parametrize(("headers", "status"), UNCERTAIN)
def test_a_body_whose_end_is_not_certain_is_refused_and_closes(server: Server, headers: bytes, status: int) -> None:
    head = HEAD + headers + b"\r\n"
    assert_refused(converse(server, [head + SMUGGLED]), status)
    assert_refused(converse(server, [head, SMUGGLED]), status)
    assert_refused(say_by_bytes(server, head + SMUGGLED), status)


def test_chunks_are_not_for_http_1_0(server: Server) -> None:
    head = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Transfer-Encoding: chunked\r\n\r\n"
    assert_refused(converse(server, [head, SMUGGLED]), 400)


@pytest.mark.parametrize(
    "line", [b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\r\r\n", b"GET\t/\tHTTP/1.1\r\n", b"GET /\x00 HTTP/1.1\r\n"]
)
def test_a_line_that_is_not_certain_is_refused(server: Server, line: bytes) -> None:
    assert_refused(converse(server, [line + b"Host: localhost\r\n\r\n" + SMUGGLED]), 400)
    assert_refused(converse(server, [line + b"Host: localhost\n\n", SMUGGLED]), 400)


@pytest.mark.parametrize(
    "length",
    [pytest.param(b"%d", id="plain"), pytest.param(b"000%d", id="zeros"), pytest.param(b" \t%d \t", id="spaces")],
)
def test_what_is_certain_is_one_request_however_it_comes(server: Server, length: bytes) -> None:
    body = json.dumps(event()).encode()
    head = HEAD + b"Content-Length: " + length % len(body) + b"\r\n\r\n"
    assert statuses(converse(server, [head + body + LAST])) == [202, 200]
    assert statuses(converse(server, [head, body, LAST])) == [202, 200]
    assert statuses(say_by_bytes(server, head + body + LAST)) == [202, 200]


# --- Chunks -----------------------------------------------------------------------------------------------------------


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def in_chunks(form: str, body: bytes) -> bytes:
    size = len(body)
    match form:
        case "one chunk":
            return chunk(body) + b"0\r\n\r\n"
        case "single bytes":
            return b"".join(chunk(body[at : at + 1]) for at in range(size)) + b"0\r\n\r\n"
        case "capital digits and zeros":
            return b"000%X\r\n%s\r\n000\r\n\r\n" % (size, body)
        case "extensions":
            return b'%x ; a=b;c="d"\r\n%s\r\n0;e\r\n\r\n' % (size, body)
        case "trailers":
            return chunk(body) + b"0\r\nX-Trailer: 1\r\nX-Other:\r\n\r\n"
    raise ValueError(form)


@pytest.mark.parametrize("form", ["one chunk", "single bytes", "capital digits and zeros", "extensions", "trailers"])
def test_a_body_in_chunks_is_one_request_however_it_comes(server: Server, form: str) -> None:
    # Something in it looks like the last chunk.
    body = json.dumps(event(payload={"n": "?"})).encode().replace(b'"?"', b"\r\n0\r\n\r\n")
    sent = in_chunks(form, body)
    assert statuses(converse(server, [CHUNKED + sent + LAST])) == [202, 200]
    assert statuses(converse(server, [CHUNKED, sent[:7], sent[7:], LAST])) == [202, 200]
    assert statuses(say_by_bytes(server, CHUNKED + sent + LAST)) == [202, 200]


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        pytest.param(b"zz\r\n[]\r\n0\r\n\r\n", 400, id="no digits"),
        pytest.param(b"\r\n[]\r\n0\r\n\r\n", 400, id="no size"),
        pytest.param(b"-2\r\n[]\r\n0\r\n\r\n", 400, id="a negative size"),
        # It would lead back to the chunk before, over and over.
        pytest.param(b"5\r\nhello\r\n-11\r\n", 400, id="a way back"),
        pytest.param(b"0x2\r\n[]\r\n0\r\n\r\n", 400, id="a prefix"),
        pytest.param(b"2 \r\n[]\r\n0\r\n\r\n", 400, id="a space behind the size"),
        pytest.param(b"0" * 19 + b"2\r\n[]\r\n0\r\n\r\n", 400, id="more digits than anybody needs"),
        pytest.param(b"2\n[]\r\n0\r\n\r\n", 400, id="a bare LF behind the size"),
        pytest.param(b"2\r[]\r\n0\r\n\r\n", 400, id="a bare CR behind the size"),
        pytest.param(b"2\r\n[]\n0\r\n\r\n", 400, id="a bare LF behind the data"),
        pytest.param(b"2\r\n[] \r\n0\r\n\r\n", 400, id="more data than the size says"),
        pytest.param(b"2;a\x00\r\n[]\r\n0\r\n\r\n", 400, id="a NUL in an extension"),
        pytest.param(b"2;a\rb\r\n[]\r\n0\r\n\r\n", 400, id="a bare CR in an extension"),
        pytest.param(b"2;" + b"a" * LONGEST_CHUNK_LINE + b"\r\n[]\r\n0\r\n\r\n", 400, id="a long extension"),
        pytest.param(b"\r" * LONGEST_CHUNK_LINE, 400, id="a line without an end"),
        pytest.param(b"2\r\n[]" + b"\r" * LONGEST_CHUNK_LINE, 400, id="a line without an end behind the data"),
        pytest.param(b"2\r\n[]\r\n0\r\nX\r\n\r\n", 400, id="a trailer without a colon"),
        pytest.param(b"2\r\n[]\r\n0\r\nX: a\n\r\n", 400, id="a trailer with a bare LF"),
        pytest.param(b"2\r\n[]\r\n0\r\nX: a\r\n b\r\n\r\n", 400, id="a folded trailer"),
        pytest.param(
            b"2\r\n[]\r\n0\r\n" + b"X: a\r\n" * (LARGEST_TRAILERS // 6 + 1), 431, id="more trailers than the limit"
        ),
    ],
)
def test_what_are_no_chunks_is_refused_and_closes(server: Server, chunks: bytes, status: int) -> None:
    assert_refused(converse(server, [CHUNKED + chunks + SMUGGLED]), status)
    assert_refused(converse(server, [CHUNKED, chunks, SMUGGLED]), status)
    assert_refused(say_by_bytes(server, CHUNKED + chunks), status)


def test_the_number_of_chunks_is_bounded(server: Server) -> None:
    body = json.dumps(event()).encode()
    spaces = chunk(b" ")
    fits = spaces * (MOST_CHUNKS - 2) + chunk(body) + b"0\r\n\r\n"
    assert statuses(converse(server, [CHUNKED + fits + LAST])) == [202, 200]
    # It is over at the first that is too many: no end has to come.
    assert_refused(converse(server, [CHUNKED + spaces * (MOST_CHUNKS + 1)]), 413)


# --- Expect: 100-continue ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that requires keys."""
    with serving(tmp_path_factory.mktemp("closed"), REQUIRE_API_KEY="true", PUBLISH_MAX_BYTES="2000000") as server:
        yield server


@pytest.fixture(scope="module")
def key(closed: Server) -> bytes:
    return closed.manage("apikey", "create", "shop", "publish").strip()


def asking(*headers: bytes, length: int, version: bytes = b"1.1") -> bytes:
    lines = [HEAD.replace(b"HTTP/1.1", b"HTTP/" + version), b"Expect: 100-Continue\r\nConnection: close\r\n"]
    lines += [header + b"\r\n" for header in headers]
    return b"".join(lines) + b"Content-Length: %d\r\n\r\n" % length


def answers_before_the_body(server: Server, head: bytes, body: bytes) -> tuple[list[int], list[int]]:
    """The statuses that come before the body is sent, and those that come behind it."""
    with server.connect() as opened:
        opened.sendall(head)
        before = opened.recv(65536)
        with suppress(ConnectionError):
            opened.sendall(body)
        behind = b""
        with suppress(ConnectionError):
            while data := opened.recv(65536):
                behind += data
    return statuses(before), statuses(behind)


BODY = json.dumps(event()).encode()


def test_who_waits_to_be_told_to_go_on_is_told_once(server: Server) -> None:
    assert answers_before_the_body(server, asking(length=len(BODY)), BODY) == ([100], [202])


def test_a_body_in_chunks_may_wait_to_be_told_too(server: Server) -> None:
    head = HEAD + b"Expect: 100-continue\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert answers_before_the_body(server, head, chunk(BODY) + b"0\r\n\r\n") == ([100], [202])


def test_nobody_is_told_to_send_a_body_that_is_too_large(server: Server) -> None:
    assert answers_before_the_body(server, asking(length=2_000_001), b"[") == ([413], [])


def test_nobody_is_told_to_send_a_body_that_is_here_already(server: Server) -> None:
    assert statuses(server.say(asking(length=len(BODY)) + BODY)) == [202]
    assert statuses(server.say(asking(length=0))) == [400]


def test_http_1_0_does_not_know_100(server: Server) -> None:
    answer = converse(server, [asking(length=len(BODY), version=b"1.0"), BODY])
    assert answer.startswith(b"HTTP/1.0 202")
    assert b" 100 " not in answer


def test_another_expectation_is_a_417(server: Server) -> None:
    head = HEAD + b"Expect: the-unexpected\r\nContent-Length: 9\r\n\r\n"
    assert_refused(converse(server, [head, SMUGGLED]), 417)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="no key"),
        pytest.param([b"Authorization: Api-Key abcdefgh.0123456789"], id="an unknown key"),
        pytest.param([b"Authorization: Bearer abcdefgh.0123456789"], id="something else"),
    ],
)
def test_without_a_key_the_answer_comes_before_the_body(closed: Server, headers: list[bytes]) -> None:
    assert answers_before_the_body(closed, asking(*headers, length=len(BODY)), BODY) == ([401], [])


def test_with_a_key_the_body_is_asked_for(closed: Server, key: bytes) -> None:
    head = asking(b"Authorization: Api-Key " + key, length=len(BODY))
    assert answers_before_the_body(closed, head, BODY) == ([100], [202])
    assert statuses(closed.say(head + BODY)) == [202]


def test_the_health_of_a_closed_service_needs_no_key_and_no_body(closed: Server) -> None:
    head = asking(length=len(BODY)).replace(b"/publish", b"/health")
    assert answers_before_the_body(closed, head, BODY) == ([405], [])
