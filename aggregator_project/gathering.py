"""gunicorn's threaded worker, but a thread gets a request when all of it has arrived, so slow clients hold none.

gthread gives a connection to a thread that then waits for the client: eight clients that send a byte a minute are
enough to stop eight threads (slowloris). Here the worker's own loop, which waits for all connections anyway, collects
what comes; threads only work. What a client has not sent by the deadline costs a place among `worker_connections` and
some memory, both bounded. A buffering proxy such as nginx does the same, for a service that has one in front.
"""

import re
import selectors
import socket
import time
from functools import partial
from typing import Any

from django.conf import settings
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
#: Seconds that a client has to close a connection whose last answer it has been sent.
LEAVING_SECONDS = 2
#: Bytes that a process holds of requests which are not answered yet.
MOST_HELD = 128 * 1024 * 1024
#: Bytes that a read takes at most: what other clients have to wait for.
READ_SIZE = 256 * 1024

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"([0-9a-f]{1,16})[ \t]*(?:;|\Z)", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)


class Arriving:
    """A request as far as it is here. It only finds the end; what stands in it is for gunicorn's parser to judge.

    Attributes:
        deadline: when it has to be complete, on the monotonic clock.
        data: what has come of it.
        waits_for_go: whether the client waits to be told that its body is wanted (RFC 9110 section 10.1.1).
        watched: whether the loop waits for more of it.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.data = bytearray()
        self.waits_for_go = False
        self.watched = False
        # Bytes it will have, once the head says so; infinite for a body in chunks, whose end has to be seen.
        self._size: float | None = None
        # Bytes of it that are waited for: none of a body that is refused by what it announces.
        self._wanted: float = 0
        # Where the next chunk begins.
        self._chunk_at = 0

    @property
    def head_complete(self) -> bool:
        return self._size is not None

    @property
    def complete(self) -> bool:
        """Whether it can be worked on."""
        if self._size is None:
            return False
        if self._size != float("inf"):
            return len(self.data) >= self._wanted
        # Too long already: for the view to refuse.
        return len(self.data) > settings.PUBLISH_MAX_BYTES + LARGEST_HEAD or self._has_last_chunk()

    @property
    def whole(self) -> bool:
        """Whether nothing of it is still to come, so that another request may follow."""
        if self._size is None:
            return False
        return self._has_last_chunk() if self._size == float("inf") else len(self.data) >= self._size

    def _has_last_chunk(self) -> bool:
        """Goes from chunk to chunk (RFC 9112 section 7.1), on from where it came to the last time."""
        while (end := self.data.find(b"\r\n", self._chunk_at)) >= 0:
            digits = _CHUNK_SIZE.match(self.data, self._chunk_at, end)
            if not digits:
                # For the parser to refuse. int() would take -11, and go back to where it has been for ever.
                return True
            size = int(digits[1], 16)
            if not size:
                # Trailers, up to an empty line.
                return self.data.find(b"\r\n\r\n", end) >= 0
            if end + 2 + size + 2 > len(self.data):
                break
            self._chunk_at = end + 2 + size + 2
        return False

    def add(self, data: bytes) -> None:
        before = len(self.data)
        self.data += data
        if self._size is None:
            end = self.data.find(b"\r\n\r\n", max(0, before - 3))
            if end >= 0:
                self._read_head(end + 4)

    def _read_head(self, end: int) -> None:
        head = bytes(self.data[: end - 2])
        length = _LENGTH.search(head)
        self._chunk_at = end
        announced = int(length[1]) if length else 0
        if _CHUNKED.search(head) and not length:
            self._size = self._wanted = float("inf")
        else:
            # With both it is for gunicorn to refuse (RFC 9112 section 6.3).
            self._size = end + announced
            # The view refuses what is too long without reading it.
            too_long = announced > settings.PUBLISH_MAX_BYTES or _CHUNKED.search(head)
            self._wanted = end if too_long else self._size
        self.waits_for_go = not self.complete and bool(_EXPECTS.search(head))


class GatheringWorker(ThreadWorker):
    """gthread with the change that the module describes. All but handle_request() runs in the worker's loop."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._arriving: dict[TConn, Arriving] = {}
        # What threads work on, or will.
        self._handed: dict[TConn, Arriving] = {}
        # Connections that are over, and until when their clients have time to say so too.
        self._leaving: dict[TConn, float] = {}
        self._held = 0

    def enqueue_req(self, conn: TConn) -> None:
        """A connection is new or has something to read: gthread would give it to a thread here."""
        conn.sock.setblocking(False)
        self._arriving[conn] = arriving = Arriving(time.monotonic() + ARRIVAL_SECONDS)
        if conn.parser is not None:
            # What it sent behind its last request.
            arriving.add(conn.parser.unreader.take_buffered())
            self._held += len(arriving.data)
            if arriving.complete:
                self._hand_over(conn, arriving)
                return
        # Mostly it is all here already, and there is nothing to wait for.
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
        self._held += len(data)
        arriving.add(data)
        if arriving.complete or (arriving.data and not data):
            # Of what a client left in the middle of, gunicorn and the view know best what to say.
            self._hand_over(conn, arriving)
        elif not data:
            self._refuse(conn, arriving, b"")
        elif not arriving.head_complete and len(arriving.data) > LARGEST_HEAD:
            self._refuse(conn, arriving, b"431 Request Header Fields Too Large")
        elif self._held > MOST_HELD:
            self._refuse(conn, arriving, b"503 Service Unavailable\r\nRetry-After: 2")
        elif arriving.waits_for_go:
            arriving.waits_for_go = False
            self._send(conn, b"HTTP/1.1 100 Continue\r\n\r\n")

    def _hand_over(self, conn: TConn, arriving: Arriving) -> None:
        self._let_go(conn, arriving)
        if not conn.initialized:
            conn.init()
            # Of what is here, and never of the socket: a thread that waited for it would wait for the client.
            conn.parser.unreader = IterUnreader(())
        conn.parser.unreader.unread(bytes(arriving.data))
        conn.data_ready = True
        self._handed[conn] = arriving
        super().enqueue_req(conn)

    def _keepalive_after(self, conn: TConn, keepalive: bool) -> bool:
        # Of a body that was refused the rest may come, and is no request.
        return bool(super()._keepalive_after(conn, keepalive and self._handed[conn].whole))

    def finish_request(self, conn: TConn, fs: Any) -> None:
        """A thread is done: what gthread does, but nobody waits here for a client to close its end."""
        self._held -= len(self._handed.pop(conn).data)
        if fs.cancelled() or fs.exception() or fs.result():
            super().finish_request(conn, fs)
            return
        # Closed at once, with something unread, the client would lose the answer (RFC 9112 section 9.6).
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_leaving, conn))
        except OSError:
            self.nr_conns -= 1
            conn.close()
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
        self.nr_conns -= 1
        conn.close()

    def _let_go(self, conn: TConn, arriving: Arriving) -> None:
        if arriving.watched:
            self.poller.unregister(conn.sock)
        del self._arriving[conn]

    def _refuse(self, conn: TConn, arriving: Arriving, status: bytes) -> None:
        self._let_go(conn, arriving)
        self._held -= len(arriving.data)
        if status:
            self._send(conn, b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        self.nr_conns -= 1
        conn.close()

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
            if arriving.deadline <= now:
                # Without a byte it is a connection that was opened and not used.
                self._refuse(conn, arriving, b"408 Request Timeout" if arriving.data else b"")
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
