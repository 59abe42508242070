"""Decides when a request is sent again, how long to wait before it, and when to give up.

In goes one try; out comes an answer that is not worth another try. Sending again is safe: all tries of a publish carry
the same Idempotency-Key, and the aggregator accepts them once.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

#: Seconds that the first wait may take at most; every further one doubles it.
FIRST_BACKOFF_SECONDS = 0.1

#: Seconds that one wait may take at most, unless the service asks for more with Retry-After.
LONGEST_BACKOFF_SECONDS = 10.0

#: The request did not arrive in time; too many requests; and the three that a service or a proxy gives while it
#: restarts or is full. None of them says that the request itself is wrong.
RETRIED_STATUSES = frozenset({408, 429, 502, 503, 504})


class Answer(NamedTuple):
    """What came back for one request, whichever library sent it."""

    status: int
    body: bytes
    location: str
    retry_after: str


class NoAnswer(Exception):
    """The connection was refused, broke or timed out. The request may have been carried out all the same."""


class ServiceUnavailable(Exception):
    """The service did not answer usefully in the time it was given. What it was sent may or may not be accepted."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Exponential backoff with full jitter, bounded by a total.

    Full jitter (a wait anywhere between nothing and the bound) spreads out publishers that failed at the same moment:
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    `max_wait` is in seconds, from the first try to giving up. `sleep`, `clock` and `jitter` (a number from 0 to 1) can
    be replaced by whoever must not wait, or must be able to stop waiting.
    """

    max_wait: float
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random

    def call(self, send: Callable[[], Answer]) -> tuple[Answer, int]:
        """Return the first answer that is not to be retried, and the number of tries it took.

        Raises ServiceUnavailable when the next wait would end after `max_wait`.
        """
        started = self.clock()
        tries = 0
        while True:
            tries += 1
            asked_for = 0.0
            try:
                answer = send()
            except NoAnswer as error:
                reason = str(error)
            else:
                if answer.status not in RETRIED_STATUSES:
                    return answer, tries
                reason = f"the service answered {answer.status}"
                asked_for = retry_after_seconds(answer.retry_after, now=datetime.now(UTC))

            backoff = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(tries - 1, 10))
            # Jitter also on top of Retry-After: the service gives many publishers the same number.
            wait = asked_for + self.jitter() * backoff
            waited = self.clock() - started
            if waited + wait > self.max_wait:
                asked = f", and asks to wait {asked_for:.0f} s" if asked_for else ""
                raise ServiceUnavailable(f"gave up after {tries} tries in {waited:.1f} s: {reason}{asked}")
            self.sleep(wait)


def retry_after_seconds(value: str, *, now: datetime) -> float:
    """Return the seconds that a Retry-After header asks for, 0 if it is empty, past or unreadable.

    Both forms of RFC 9110 section 10.2.3: a number of seconds, or an HTTP-date, which is compared with `now`.
    """
    if value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    if date.tzinfo is None:  # "-0000" is UTC without a place; HTTP-dates are always UTC
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - now).total_seconds())
