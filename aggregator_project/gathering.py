"""gunicorn's threaded worker, but a thread gets a request when all of it has arrived, so slow clients hold none.

gthread gives a connection to a thread that then waits for the client: eight clients that send a byte a minute are
enough to stop eight threads (slowloris). Here the worker's own loop, which waits for all connections anyway, reads
requests; threads only work. What a client has not sent by the deadline costs a place among `worker_connections` and
some memory, both bounded. A buffering proxy such as nginx does the same, for a service that has one in front.

One parser decides where a request ends: gunicorn's reads the head once, in the loop, which then collects the body that
this head describes. Nothing reads either of them a second time, so no two readings can differ (request smuggling).
"""

import errno
import gc
import json
import re
import selectors
import socket
import time
from collections import deque
from concurrent.futures import Future
from functools import partial
from http import HTTPStatus
from io import BytesIO
from typing import Any

from django.conf import settings
from gunicorn.config import Config
from gunicorn.http import errors
from gunicorn.http.body import ChunkedReader
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import IterUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

#: Seconds in which a request has to arrive, from its first chance to its last byte: 10 MiB at 3 Mbit/s.
ARRIVAL_SECONDS = 30
#: The same while the service stops: gunicorn's graceful_timeout has to hold the work on it as well.
STOPPING_SECONDS = 2
#: Seconds in which a client has to take what it is sent at a time: an answer, or one slice of a stream.
STALL_SECONDS = 10
#: Bytes that a request line and its headers may have together.
LARGEST_HEAD = 64 * 1024
#: Chunks that a body may have: an event and a comma for each of 10,000 events. The loop pays a microsecond for each.
MOST_CHUNKS = 20_000
#: Bytes of the line before a chunk. A signed one, as S3's clients send it, has about 90.
LONGEST_CHUNK_LINE = 256
#: Bytes that the trailers behind the last chunk may have together. Nothing here reads them.
LARGEST_TRAILERS = 8 * 1024
#: Seconds that a client has to close a connection whose last answer it has been sent.
LEAVING_SECONDS = 2
#: Bytes that a process holds of requests which are not answered yet; small ones, up to LARGEST_HEAD, pass beyond it.
MOST_HELD = 64 * 1024 * 1024
#: Bytes of large requests that have threads at a time; the next ones wait here. One request passes, however large. What
#: work on them takes is bounded in events/memory.py, by waiting: this keeps some threads from waiting there.
MOST_WORKED_ON = 20 * 1024 * 1024
#: Bytes that a read takes at most: what other clients have to wait for.
READ_SIZE = 256 * 1024
#: Seconds until a process accepts connections again after it had no file left for one.
ACCEPT_PAUSE_SECONDS = 1
#: Seconds between two log lines about refused requests.
REFUSED_PAUSE_SECONDS = 1

_EMPTY_LINE = re.compile(rb"\n\r?\n")
_LENGTH = re.compile(r"[0-9]{1,18}")
# RFC 9112 section 7.1, with whatever a line may hold for the extensions, which nothing here reads.
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n")


class TooManyChunks(errors.ParseException):
    """A body has more than MOST_CHUNKS."""

    def __str__(self) -> str:
        return f"The body has more than {MOST_CHUNKS} chunks: send larger ones, or all of it with its Content-Length"


#: What gunicorn's parser raises, and what the client is told; everything else is a 400.
_STATUS = {
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    errors.UnsupportedTransferCoding: HTTPStatus.NOT_IMPLEMENTED,
    TooManyChunks: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}


class Head(Request):
    """A request without its body, read by gunicorn's parser, which is told what else to refuse.

    Attributes:
        length: bytes of the body; None where it comes in chunks.
        waits_for_go: whether the client waits to be told that its body is wanted (RFC 9110 section 10.1.1).
    """

    length: int | None
    waits_for_go: bool
    _expected_100_continue: bool

    def set_body_reader(self) -> None:
        """Judges the headers that say where the body ends (RFC 9112 section 6)."""
        super().set_body_reader()
        values = {"CONTENT-LENGTH": "", "TRANSFER-ENCODING": ""}
        values |= {name: value for name, value in self.headers if name in values}
        coding, length = values["TRANSFER-ENCODING"], values["CONTENT-LENGTH"]
        if isinstance(self.body.reader, ChunkedReader):
            # gunicorn takes what stands before the word as if it were nothing, and refuses two such headers.
            if coding.lower() != "chunked" or [name for name, _ in self.headers].count("TRANSFER-ENCODING") > 1:
                raise errors.UnsupportedTransferCoding(coding)
            self.length = None
        else:
            # Whoever stands in front may not read as many digits as Python does.
            if length and not _LENGTH.fullmatch(length):
                raise errors.InvalidHeader("CONTENT-LENGTH", req=self)
            self.length = int(length or 0)
        # gunicorn would tell it when a thread begins, which is when the body is here.
        self.waits_for_go = self._expected_100_continue
        self._expected_100_continue = False


class Chunks:
    """Takes a chunked body apart as it arrives (RFC 9112 section 7.1), looking at each byte once.

    Attributes:
        complete: whether the last chunk and its trailers have come.
    """

    def __init__(self, body: BytesIO) -> None:
        self.complete = False
        self._body = body
        self._read_line = self._read_size
        self._line = bytearray()
        # Bytes of the current chunk that are still to come.
        self._missing = 0
        self._count = 0
        self._trailers = 0

    def add(self, data: bytes) -> bytes:
        """Takes what has come.

        Returns:
            What stands behind the end of the body.

        Raises:
            gunicorn.http.errors.ParseException: this is no body in chunks, or one beyond a limit.
        """
        at = 0
        while at < len(data) and not self.complete:
            if self._missing:
                part = data[at : at + self._missing]
                self._body.write(part)
                self._missing -= len(part)
                at += len(part)
                continue
            end = data.find(b"\n", at, at + LONGEST_CHUNK_LINE) + 1 or min(len(data), at + LONGEST_CHUNK_LINE)
            self._line += data[at:end]
            at = end
            if self._line.endswith(b"\n"):
                line = bytes(self._line)
                self._line.clear()
                self._read_line(line)
            elif len(self._line) >= LONGEST_CHUNK_LINE:
                raise errors.InvalidChunkSize(b"a line of more than %d bytes" % LONGEST_CHUNK_LINE)
        return data[at:]

    def _read_size(self, line: bytes) -> None:
        found = _CHUNK_LINE.fullmatch(line)
        if not found:
            raise errors.InvalidChunkSize(line)
        self._missing = int(found[1], 16)
        self._count += 1
        if self._count > MOST_CHUNKS:
            raise TooManyChunks
        self._read_line = self._read_end if self._missing else self._read_trailer

    def _read_end(self, line: bytes) -> None:
        if line != b"\r\n":
            raise errors.ChunkMissingTerminator(line)
        self._read_line = self._read_size

    def _read_trailer(self, line: bytes) -> None:
        self._trailers += len(line)
        if line == b"\r\n":
            self.complete = True
        elif self._trailers > LARGEST_TRAILERS:
            raise errors.LimitRequestHeaders(f"trailers of more than {LARGEST_TRAILERS} bytes")
        elif not _TRAILER.fullmatch(line):
            raise errors.InvalidHeader(line)


class Arriving:
    """A request as far as it is here.

    Attributes:
        deadline: when it has to be complete, on the monotonic clock.
        head: its line and headers, once they are here.
        body: as much of the body as is here, without the lines of chunks.
        rest: what has come behind it.
        received: bytes that have come.
        watched: whether the loop waits for more of it.
    """

    def __init__(self, config: Config, client: Any, deadline: float) -> None:
        self.deadline = deadline
        self.head: Head | None = None
        self.body = BytesIO()
        self.rest = b""
        self.received = 0
        self.watched = False
        self._config, self._client = config, client
        self._unread = bytearray()
        self._chunks = Chunks(self.body)

    @property
    def too_large(self) -> bool:
        """Whether the view will refuse it for its size, so that nobody waits for all of it."""
        size = self.head.length if self.head else 0
        return (self.body.tell() if size is None else size) > settings.PUBLISH_MAX_BYTES

    @property
    def whole(self) -> bool:
        """Whether nothing of it is still to come, so that another request may follow."""
        if self.head is None:
            return False
        return self._chunks.complete if self.head.length is None else self.body.tell() == self.head.length

    def add(self, data: bytes) -> None:
        """Takes what has come.

        Raises:
            gunicorn.http.errors.ParseException: it is no request, one whose end is not certain, or beyond a limit.
        """
        self.received += len(data)
        if self.head is None:
            data = self._add_to_head(data)
        if self.head is None or self.too_large:
            return
        if self.head.length is None:
            self.rest = self._chunks.add(data)
        else:
            missing = self.head.length - self.body.tell()
            self.body.write(data[:missing])
            self.rest = data[missing:]

    def _add_to_head(self, data: bytes) -> bytes:
        """Returns what stands behind the head."""
        before = len(self._unread)
        self._unread += data
        # Also an empty line after a bare LF: nothing else may follow it, and the parser refuses it.
        end = _EMPTY_LINE.search(self._unread, max(0, before - 2))
        size = end.end() if end else len(self._unread)
        if size > LARGEST_HEAD:
            raise errors.LimitRequestHeaders(f"line and headers of more than {LARGEST_HEAD} bytes")
        if not end:
            return b""
        head, data = bytes(self._unread[:size]), bytes(self._unread[size:])
        self._unread.clear()
        self.head = Head(self._config, IterUnreader([head]), self._client)
        return data


class Parser(RequestParser):
    """Gives a thread the request that the loop has read, where gunicorn's would read the socket."""

    mesg: Any

    def __next__(self) -> Any:
        return self.mesg

    def put(self, arriving: Arriving) -> None:
        """What the next thread gets."""
        self.mesg = arriving.head
        if not arriving.whole:
            # The rest of a body that is refused may still come, and is no request. The answer says that the connection
            # ends (RFC 9112 section 9.6), or a client would send its next request into it.
            self.mesg.force_close()
        # Cuts what it has room for beyond the body, so that reading all of it copies nothing.
        arriving.body.getvalue()
        arriving.body.seek(0)
        self.mesg.body = arriving.body
        self.unreader.unread(arriving.rest)


class GatheringWorker(ThreadWorker):
    """gthread with the change that the module describes. All but handle_request() runs in the worker's loop."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._arriving: dict[TConn, Arriving] = {}
        # What threads work on, or will.
        self._handed: dict[TConn, Arriving] = {}
        # Those of them that wait until less is worked on, and how many bytes that is.
        self._queue: deque[TConn] = deque()
        self._worked_on = 0
        # Bytes of large requests that were answered since the garbage collector last ran.
        self._done = 0
        # Connections that are over, and until when their clients have time to say so too.
        self._leaving: dict[TConn, float] = {}
        self._held = 0
        self._accept_again_at = 0.0
        self._refused_line_at = float("-inf")

    def accept(self, listener: socket.socket) -> None:
        """Takes a connection; where no file is left for it, it waits in the backlog instead of ending the process."""
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self.log.warning("no file is left for another connection; see ulimit -n")
            self._accept_again_at = time.monotonic() + ACCEPT_PAUSE_SECONDS
            self.set_accept_enabled(False)

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled and time.monotonic() >= self._accept_again_at)

    def enqueue_req(self, conn: TConn) -> None:
        """A connection is new or has something to read: gthread would give it to a thread here."""
        conn.sock.setblocking(False)
        if not conn.initialized:
            conn.initialized = True
            conn.parser = Parser(self.cfg, (), conn.client)
        self._arriving[conn] = arriving = Arriving(self.cfg, conn.client, time.monotonic() + ARRIVAL_SECONDS)
        # What it sent behind its last request.
        if rest := conn.parser.unreader.take_buffered():
            self._take(conn, arriving, rest)
        # Mostly it is all here already, and there is nothing to wait for.
        if conn in self._arriving:
            self._on_readable(conn, conn.sock)
        if conn in self._arriving:
            arriving.watched = True
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_readable, conn))

    def _on_readable(self, conn: TConn, _sock: Any) -> None:
        arriving = self._arriving[conn]
        try:
            data = conn.sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._take(conn, arriving, data)
        elif arriving.received:
            self._refuse(conn, arriving, 400, "The request ended early")
        else:
            self._forget(conn, arriving)
            self._close(conn)

    def _take(self, conn: TConn, arriving: Arriving, data: bytes) -> None:
        self._held += len(data)
        try:
            arriving.add(data)
        except errors.ParseException as error:
            self._refuse(conn, arriving, _STATUS.get(type(error), 400), str(error))
            return
        except Exception:
            # Raised from here it would end the process, and every request in it.
            self.log.exception("a request could not be read")
            self._refuse(conn, arriving, 400, "The request could not be read")
            return
        if self._held > MOST_HELD and arriving.received > LARGEST_HEAD:
            self._refuse(conn, arriving, 503, "Too much is arriving at once: try again in 2 seconds")
        elif arriving.whole or arriving.too_large:
            self._hand_over(conn, arriving)
        elif arriving.head and arriving.head.waits_for_go:
            arriving.head.waits_for_go = False
            self._on_expect(conn, arriving, arriving.head)

    def _on_expect(self, conn: TConn, arriving: Arriving, head: Head) -> None:
        """The client sends its body when it is told to, or gets an answer that needs none."""
        if not settings.REQUIRE_API_KEY or head.path.startswith("/admin/"):
            self._send(conn, b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        # Keys are in the database, which the loop must not wait for. No view can be asked yet: it would read the body,
        # and its thread would wait for the client.
        headers = {f"HTTP_{name.replace('-', '_')}": value for name, value in head.headers}
        found = self.tpool.submit(_has_key, headers)
        found.add_done_callback(lambda answer: self.method_queue.defer(self._on_key, conn, arriving, answer))

    def _on_key(self, conn: TConn, arriving: Arriving, answer: Future[bool]) -> None:
        if self._arriving.get(conn) is not arriving:
            # It sent its body without waiting, or left.
            return
        if answer.exception() or answer.result():
            self._send(conn, b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            # The view refuses it, as it does without a body.
            self._hand_over(conn, arriving)

    def _hand_over(self, conn: TConn, arriving: Arriving) -> None:
        self._forget(conn, arriving)
        self._handed[conn] = arriving
        conn.parser.put(arriving)
        if arriving.received > LARGEST_HEAD:
            self._queue.append(conn)
            self._start_large()
        else:
            super().enqueue_req(conn)

    def _start_large(self) -> None:
        """Gives threads as many of the large requests as may be worked on together."""
        while self._queue:
            size = self._handed[self._queue[0]].received
            if self._worked_on and self._worked_on + size > MOST_WORKED_ON:
                break
            self._worked_on += size
            super().enqueue_req(self._queue.popleft())

    def _keepalive_after(self, _conn: TConn, keepalive: bool) -> bool:
        # gthread would read from the socket what the view left of a body; here all of it has been read.
        return keepalive

    def finish_request(self, conn: TConn, fs: Any) -> None:
        """A thread is done: what gthread does, but nobody waits here for a client to close its end."""
        size = self._handed.pop(conn).received
        # With its body, which a connection that is kept would keep.
        conn.parser.mesg = None
        self._held -= size
        if size > LARGEST_HEAD:
            self._worked_on -= size
            self._done += size
            if self._done >= MOST_WORKED_ON:
                # REST framework's views, requests and answers refer to each other, so the events they hold stay until
                # the collector comes, which counts objects and not bytes.
                self._done = 0
                gc.collect()
            self._start_large()
        if fs.cancelled() or fs.exception() or fs.result():
            super().finish_request(conn, fs)
        else:
            self._linger(conn)

    def _linger(self, conn: TConn) -> None:
        """Closed at once, with something unread, the client would lose the answer (RFC 9112 section 9.6)."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_leaving, conn))
        except OSError:
            self._close(conn)
            return
        self._leaving[conn] = time.monotonic() + LEAVING_SECONDS

    def _on_leaving(self, conn: TConn, _sock: Any) -> None:
        try:
            if conn.sock.recv(READ_SIZE):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.log.debug("client left")
        self._leave(conn)

    def _leave(self, conn: TConn) -> None:
        del self._leaving[conn]
        self.poller.unregister(conn.sock)
        self._close(conn)

    def _close(self, conn: TConn) -> None:
        self.nr_conns -= 1
        conn.close()

    def _forget(self, conn: TConn, arriving: Arriving) -> None:
        if arriving.watched:
            self.poller.unregister(conn.sock)
        del self._arriving[conn]

    def _refuse(self, conn: TConn, arriving: Arriving, status: int, detail: str) -> None:
        """Answers in place of a view, in the same form, and closes: where a next request would begin is not certain."""
        self._forget(conn, arriving)
        self._held -= arriving.received
        body = json.dumps({"detail": f"{detail}."}).encode()
        headers = f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers += "Retry-After: 2\r\n"
        line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        self._send(conn, f"{line}{headers}\r\n".encode() + body)
        self._linger(conn)
        # A client gone wrong is news once, not a thousand times a second.
        if time.monotonic() - self._refused_line_at >= REFUSED_PAUSE_SECONDS:
            self._refused_line_at = time.monotonic()
            self.log.info("request refused", extra={"status": int(status), "address": conn.client[0]})

    def _send(self, conn: TConn, data: bytes) -> None:
        try:
            conn.sock.send(data)
        except OSError:
            self.log.debug("client left")

    def murder_pending(self) -> None:
        """What gthread calls once a second to close connections whose time is over."""
        super().murder_pending()
        now = time.monotonic()
        for conn, arriving in list(self._arriving.items()):
            if not self.alive:
                arriving.deadline = min(arriving.deadline, now + STOPPING_SECONDS)
            if arriving.deadline > now:
                continue
            if arriving.received:
                self._refuse(conn, arriving, 408, f"The request did not arrive within {ARRIVAL_SECONDS} seconds")
            else:
                # A connection that was opened and not used.
                self._forget(conn, arriving)
                self._close(conn)
        for conn, until in list(self._leaving.items()):
            if until <= now:
                self._leave(conn)

    def handle_request(self, req: Any, conn: TConn) -> bool:
        """Runs in a thread, which a client that does not read must not hold either."""
        conn.sock.settimeout(STALL_SECONDS)
        try:
            return bool(super().handle_request(req, conn))
        except TimeoutError:
            self.log.debug("client does not read")
            # What gthread takes for: close it without another word.
            raise StopIteration from None


def _has_key(headers: dict[str, str]) -> bool:
    """Whether the headers hold an API key that works. Runs in a thread, outside of any request."""
    # gunicorn imports this module before Django is set up.
    from django.db import close_old_connections

    from events import keys
    from events.api.doors import given_keys

    close_old_connections()
    given = given_keys(headers)
    return len(given) == 1 and keys.find(given.pop()) is not None
