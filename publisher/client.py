"""The client: publishes batches, reads events and stats.

In go events as plain dicts; out comes the service's receipt once they are on its disk. A publish is tried again when
the service is away or busy. That is safe: all tries carry the same Idempotency-Key, so the service accepts them once.
"""

import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from math import isfinite
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from publisher.retry import Answer, NoAnswer, Retry, ServiceUnavailable

#: Seconds between two looks at a service that is starting or still processing.
POLL_SECONDS = 0.2

#: What a header can carry and the service takes as an Idempotency-Key: 1 to 255 printable ASCII characters.
_IDEMPOTENCY_KEY = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")


class PublishRefused(Exception):
    """The service refuses this publish (4xx). None of its events was accepted; sending it again would not help.

    `status` is the HTTP status, `detail` the service's sentence, `errors` its list of {"index", "field", "message"}.
    """

    def __init__(self, *, status: int, detail: str, errors: list[dict[str, Any]]) -> None:
        self.status = status
        self.detail = detail
        self.errors = errors
        first = errors[0] if errors else None
        where = f" (event {first.get('index')}, {first.get('field')}: {first.get('message')})" if first else ""
        super().__init__(f"refused with {status}: {detail}{where}")


class UnexpectedAnswer(Exception):
    """The service, or something else at this address, answered with what the contract does not know.

    `status` is the HTTP status.
    """

    def __init__(self, answer: Answer) -> None:
        self.status = answer.status
        super().__init__(f"the service answered {answer.status}: {_beginning(answer)}")


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The service's word that a batch is on its disk. `queued` events wait for the worker to sort out duplicates."""

    status: str
    received: int
    queued: int
    batch_id: int | str
    #: Where the service tells what became of the batch: `/batches/{id}`.
    location: str = ""
    #: Requests it took. All of them together are one publish to the service.
    tries: int = 1


class Client:
    """Talks to one aggregator over a pool of kept-alive connections. Threads may share it.

    `url` is the service's address, `api_key` is sent as `Authorization: Api-Key …`, `timeout` is in seconds for one
    request, `max_wait` in seconds for all tries of one call. `sleep`, `clock` and `jitter` are those of `Retry`.

    Raises ValueError for an address that is not http or https.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 10.0,
        max_wait: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.url = checked_url(url)
        self.timeout = timeout
        self.headers = {"Accept": "application/json"}
        if api_key:
            self.headers["Authorization"] = f"Api-Key {api_key}"
        self.retry = Retry(max_wait=max_wait, sleep=sleep, clock=clock, jitter=jitter)
        self._http = httpx.Client(headers=self.headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The client cannot be used afterwards."""
        self._http.close()

    def publish(self, events: Sequence[Mapping[str, Any]], *, idempotency_key: str | None = None) -> Receipt:
        """Publish `events` as one batch and return the receipt: all of them are on the service's disk.

        Connection errors, timeouts, 408, 429, 502, 503 and 504 are tried again: with backoff, and as Retry-After asks.
        All tries are one publish to the service, so none of them counts as duplicates.

        Args:
            events: what to publish, as GET /docs describes an event.
            idempotency_key: a name for this publish, for callers that send it again themselves; 1 to 255 printable
                ASCII characters. Left out, each call has one of its own.

        Returns:
            The service's receipt.

        Raises:
            ValueError: a number is NaN or infinite, which JSON cannot hold, or the key cannot be one; nothing was sent.
            PublishRefused: 4xx; none was accepted.
            ServiceUnavailable: it kept failing. Publish again later: what did get through is dropped as duplicate.
            UnexpectedAnswer: neither a receipt nor a refusal.
        """
        key = new_idempotency_key() if idempotency_key is None else idempotency_key
        if not _IDEMPOTENCY_KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no idempotency key: it must be 1 to 255 printable ASCII characters")
        body = encoded(events)
        answer, tries = self.retry.call(lambda: self._post(body, key))
        return receipt_from(answer, tries=tries)

    def stats(self) -> dict[str, Any]:
        """Return the books: received, unique_processed, duplicate_dropped, pending, failed, discarded, topics, …

        Raises ServiceUnavailable, UnexpectedAnswer.
        """
        return self._read("/stats")

    def health(self) -> dict[str, Any]:
        """Return `{"status": "healthy"}`, asking once.

        Raises ServiceUnavailable if nothing answers, UnexpectedAnswer for anything but 200.
        """
        try:
            return decoded(self._get("/health"))
        except NoAnswer as error:
            raise ServiceUnavailable(str(error)) from error

    def events(self, **filters: str | int | datetime) -> Iterator[dict[str, Any]]:
        """Yield every stored event that matches, oldest first, page by page.

        `filters` are those of GET /events: topic, source, event_id, batch_id, since, until; limit is the page size.

        Raises ServiceUnavailable, UnexpectedAnswer (also for a filter the service does not accept).
        """
        texts = {
            name: value.isoformat() if isinstance(value, datetime) else str(value) for name, value in filters.items()
        }
        query = str(httpx.QueryParams(texts))
        while True:
            page = self._read(f"/events?{query}")
            yield from page["events"]
            if page["next"] is None:
                return
            # Only the query: behind a proxy an absolute link may name a host that is not ours to send the key to.
            query = httpx.URL(page["next"]).query.decode("ascii")

    def wait_until_healthy(self, timeout_seconds: float) -> None:
        """Return as soon as the service says it is healthy.

        Raises ServiceUnavailable after `timeout_seconds`, naming the last thing that was wrong.
        """
        deadline = self.retry.clock() + timeout_seconds
        while True:
            try:
                self.health()
            except (ServiceUnavailable, UnexpectedAnswer) as error:
                if self.retry.clock() >= deadline:
                    text = f"{self.url} is not healthy after {timeout_seconds:g} s: {error}"
                    raise ServiceUnavailable(text) from error
                self.retry.sleep(POLL_SECONDS)
            else:
                return

    def wait_until_processed(self, *, timeout_seconds: float = 60.0) -> dict[str, Any]:
        """Return the stats as soon as all that was received before this call is processed.

        With nobody else publishing that is when nothing is pending; with others there is always something pending.

        Raises ServiceUnavailable when nothing at all was processed for `timeout_seconds`.
        """
        stats = self.stats()
        goal = stats["received"]
        done = stats["received"] - stats["pending"]
        deadline = self.retry.clock() + timeout_seconds
        while done < goal:
            if self.retry.clock() >= deadline:
                pending = stats["pending"]
                raise ServiceUnavailable(f"nothing was processed for {timeout_seconds:g} s, {pending:,} are pending")
            self.retry.sleep(POLL_SECONDS)
            stats = self.stats()
            if stats["received"] - stats["pending"] > done:
                done = stats["received"] - stats["pending"]
                deadline = self.retry.clock() + timeout_seconds
        return stats

    def _read(self, path: str) -> dict[str, Any]:
        answer, _ = self.retry.call(lambda: self._get(path))
        return decoded(answer)

    def _get(self, path: str) -> Answer:
        return self._answer("GET", path, None, {})

    def _post(self, body: bytes, idempotency_key: str) -> Answer:
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key}
        return self._answer("POST", "/publish", body, headers)

    def _answer(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        try:
            answer = self._http.request(method, self.url + path, content=body, headers=headers)
        except httpx.TransportError as error:
            raise NoAnswer(f"no answer from {self.url}: {error or type(error).__name__}") from error
        return Answer(
            status=answer.status_code,
            body=answer.content,
            location=answer.headers.get("Location", ""),
            retry_after=answer.headers.get("Retry-After", ""),
        )


def checked_url(url: str) -> str:
    """Return the address without a slash at its end. Raises ValueError unless it is `http://host…` or `https://host…`."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f'"{url}" is not an address: {error}') from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f'"{url}" is not an address such as http://127.0.0.1:8080')
    return url.rstrip("/")


def new_idempotency_key() -> str:
    """Return a name that no other publish has."""
    return str(uuid.uuid4())


def encoded(events: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the events as JSON.

    Raises ValueError where a number is NaN or infinite. JSON has no such numbers, and msgspec would write null.
    """
    body = msgspec.json.encode(events)
    # Without a null in the text none was written, and there is nothing to look for.
    if b"null" in body:
        _require_finite(msgspec.to_builtins(events), "events")
    return body


def _require_finite(value: Any, place: str) -> None:
    match value:
        case float() if not isfinite(value):
            raise ValueError(f"{place} is {value}, which JSON cannot hold: send null or a text instead")
        case dict():
            for name, inner in value.items():
                _require_finite(inner, f"{place}.{name}")
        case list() | tuple():
            for index, inner in enumerate(value):
                _require_finite(inner, f"{place}[{index}]")


def receipt_from(answer: Answer, *, tries: int) -> Receipt:
    """Return the receipt in the answer to a publish. Raises PublishRefused (4xx), UnexpectedAnswer (all but 202)."""
    if 400 <= answer.status < 500:
        detail, errors = _refusal(answer)
        raise PublishRefused(status=answer.status, detail=detail, errors=errors)
    if answer.status != 202:
        raise UnexpectedAnswer(answer)
    try:
        receipt = msgspec.json.decode(answer.body, type=Receipt)
    except msgspec.DecodeError as error:
        raise UnexpectedAnswer(answer) from error
    return msgspec.structs.replace(receipt, location=answer.location, tries=tries)


def decoded(answer: Answer) -> dict[str, Any]:
    """Return the JSON object of a read. Raises UnexpectedAnswer unless it is a 200 with one."""
    if answer.status != 200:
        raise UnexpectedAnswer(answer)
    try:
        return msgspec.json.decode(answer.body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise UnexpectedAnswer(answer) from error


def _refusal(answer: Answer) -> tuple[str, list[dict[str, Any]]]:
    try:
        told = msgspec.json.decode(answer.body, type=dict[str, Any])
    except msgspec.DecodeError:  # a proxy in front refuses in HTML
        return _beginning(answer), []
    errors = told.get("errors")
    return str(told.get("detail", "")), errors if isinstance(errors, list) else []


def _beginning(answer: Answer) -> str:
    return answer.body[:200].decode("utf-8", errors="replace").strip()
