"""Puts load on a running service: sends a sample in batches over several connections and measures what comes back.

In go a client and a sample; out comes what was sent, what was accepted, and how long a publisher waited. Each event of
the sample is sent once, but for retries; the run ends early when the service refuses or is gone, and says so.
"""

import time
from array import array
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from threading import Event as Signal
from threading import Lock

import msgspec

from publisher.client import Client, PublishRefused, UnexpectedAnswer, new_idempotency_key, receipt_from
from publisher.connection import Connection
from publisher.retry import Answer, Retry, ServiceUnavailable
from publisher.sample import Event, Sample, generate

__all__ = ["LoadResult", "generate", "run"]

#: Seconds between two calls of the progress callback: often enough to look alive, too rare to cost anything.
PROGRESS_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """What a run did. All numbers are events but `retries` (requests sent again), `seconds` and milliseconds.

    The percentiles are of the time from handing over a batch to its receipt, retries and their waits included: what a
    publisher waits. They are 0 if nothing was accepted. `stopped` says why the run ended early, None if it did not.
    """

    sent: int
    accepted: int
    refused: int
    retries: int
    unique_expected: int
    duplicates_expected: int
    seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    stopped: str | None

    @property
    def rate(self) -> float:
        """Accepted events per second."""
        return self.accepted / self.seconds if self.seconds else 0.0

    @property
    def unanswered(self) -> int:
        """Events that were sent and never answered: they may or may not be accepted."""
        return self.sent - self.accepted - self.refused


def run(
    client: Client,
    sample: Sample,
    *,
    batch_size: int = 100,
    concurrency: int = 4,
    rate: float | None = None,
    progress: Callable[[int], None] = lambda accepted: None,
) -> LoadResult:
    """Send the sample and return what came of it.

    `batch_size` is in events; `concurrency` is how many batches are under way at once, each on its own connection;
    `rate` is the most events per second, None for as fast as it goes. `progress` is called with the events accepted so
    far, from the calling thread. Address, key, timeout and retries are the client's. Ctrl-C ends the run after the
    requests under way, and the result tells what was sent until then.
    """
    load = _Load(client, sample, batch_size=batch_size, rate=rate)
    started = time.perf_counter()
    workers = []
    with ThreadPoolExecutor(concurrency) as pool:
        # Leaving the pool waits for its threads, so from the first thread on nothing may leave it without a stop.
        try:
            for _ in range(concurrency):
                workers.append(pool.submit(load.work))
            while wait(workers, timeout=PROGRESS_SECONDS).not_done:
                progress(load.accepted)
        except KeyboardInterrupt:
            load.stop("interrupted")
        except BaseException:
            load.stop("the progress display failed")
            raise
    seconds = time.perf_counter() - started
    for worker in workers:
        worker.result()
    progress(load.accepted)
    waits = sorted(load.waits)
    return LoadResult(
        sent=load.sent,
        accepted=load.accepted,
        refused=load.refused,
        retries=load.retries,
        unique_expected=sample.unique,
        duplicates_expected=sample.duplicates,
        seconds=seconds,
        p50_ms=1000 * percentile(waits, 50),
        p95_ms=1000 * percentile(waits, 95),
        p99_ms=1000 * percentile(waits, 99),
        stopped=load.stopped,
    )


def percentile(ordered: list[float], percent: int) -> float:
    """Return the smallest of the ordered values that `percent` % of them do not exceed (nearest rank), 0 of none."""
    return ordered[max(ceil(len(ordered) * percent / 100), 1) - 1] if ordered else 0.0


class _Stopped(Exception):
    pass


class _Load:
    """What the threads of one run share: the events still to send, the pace, and the counts."""

    def __init__(self, client: Client, events: Iterable[Event], *, batch_size: int, rate: float | None) -> None:
        self._client = client
        self._events = iter(events)
        self._batch_size = batch_size
        self._seconds_per_event = 1 / rate if rate else 0.0
        self._next_start = time.monotonic()
        self._stopping = Signal()
        self._lock = Lock()
        self.sent = self.accepted = self.refused = self.retries = 0
        self.waits = array("d")
        self.stopped: str | None = None

    def stop(self, reason: str) -> None:
        """Let every thread end after the request it is in; the first reason is kept."""
        with self._lock:
            self.stopped = self.stopped or reason
        self._stopping.set()

    def work(self) -> None:
        """Send batches over one connection until there are none left or the run is stopped."""
        client = self._client
        retry = replace(client.retry, sleep=self._pause)
        encode = msgspec.json.Encoder().encode
        connection = Connection(client.url, headers=client.headers, timeout=client.timeout)
        try:
            while batch := self._take():
                self._send(retry, connection, encode(batch), len(batch))
        except _Stopped:
            pass
        except (PublishRefused, ServiceUnavailable, UnexpectedAnswer) as error:
            self.stop(str(error))
        finally:
            connection.close()

    def _take(self) -> list[Event]:
        with self._lock:
            if self._stopping.is_set():
                raise _Stopped
            batch = list(islice(self._events, self._batch_size))
            # Time that a slow service lost is not made up for: the rate is a limit, never exceeded.
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + len(batch) * self._seconds_per_event
        self._pause(start - time.monotonic())
        return batch

    def _send(self, retry: Retry, connection: Connection, body: bytes, events: int) -> None:
        tries = 0
        # The same for all tries: of what was accepted without an answer, the books must not hold duplicates.
        key = new_idempotency_key()

        def post() -> Answer:
            nonlocal tries
            tries += 1
            return connection.post(body, idempotency_key=key)

        accepted = refused = 0
        started = time.perf_counter()
        try:
            answer, _ = retry.call(post)
            accepted = receipt_from(answer, tries=tries).received
        except PublishRefused:
            refused = events
            raise
        finally:
            with self._lock:
                self.sent += events
                self.accepted += accepted
                self.refused += refused
                self.retries += tries - 1
                if accepted:
                    self.waits.append(time.perf_counter() - started)

    def _pause(self, seconds: float) -> None:
        if seconds > 0 and self._stopping.wait(seconds):
            raise _Stopped
