"""Posts bodies to /publish over one kept-alive connection, straight to the service, for the load generator.

The standard library's http.client instead of httpx: a publish of one event costs 0.2 ms of CPU with 8 threads against
0.9 ms, and 5,000 instead of 1,150 go out a second (2 cores, against a server that only answers). What the load
generator uses, the service under test cannot. It knows no proxies, redirects or compression.
"""

import http.client
import select
import socket
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from publisher.retry import Answer, NoAnswer


class Connection:
    """One connection, made when it is first needed and again after it broke. For one thread at a time.

    `url` is the service's address, `headers` go with every request, `timeout` is in seconds for one wait on the socket.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str], timeout: float) -> None:
        parts = urlsplit(url)
        https = parts.scheme == "https"
        kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
        self._http = kind(parts.hostname or "", parts.port, timeout=timeout)
        self._url = url
        self._path = f"{parts.path.rstrip('/')}/publish"
        self._headers = {**headers, "Content-Type": "application/json"}

    def close(self) -> None:
        """Close the connection; the next post opens it again."""
        self._http.close()

    def post(self, body: bytes, *, idempotency_key: str | None = None) -> Answer:
        """Send one publish and return its answer, whatever its status. Raises NoAnswer."""
        headers = self._headers if idempotency_key is None else {**self._headers, "Idempotency-Key": idempotency_key}
        try:
            self._open()
            # A service that refuses a large body answers before it has read it and then closes: read what it says.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._http.request("POST", self._path, body, headers)
            return self._answer()
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            raise NoAnswer(f"no answer from {self._url}: {error or type(error).__name__}") from error

    def _open(self) -> None:
        if self._http.sock is not None and _closed_by_the_other_side(self._http.sock):
            self._http.close()
        if self._http.sock is None:
            self._http.connect()

    def _answer(self) -> Answer:
        answer = self._http.getresponse()
        return Answer(
            status=answer.status,
            body=answer.read(),
            location=answer.getheader("Location", ""),
            retry_after=answer.getheader("Retry-After", ""),
        )


def _closed_by_the_other_side(sock: socket.socket) -> bool:
    # Nothing is asked, so nothing can be there to read but the end. Servers close idle connections after seconds.
    readable, _, _ = select.select([sock], [], [], 0)
    return bool(readable)
