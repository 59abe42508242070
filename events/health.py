"""Whether the service can do its work: django-health-check's checks, and those of state.py as checks of the same kind.

All run at once in threads of their own, none for longer than a second or two, and their answers are good for a second:
asking often costs nothing.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta

from django.conf import settings
from django.db import connection
from health_check import checks
from health_check.base import HealthCheck, HealthCheckResult
from health_check.exceptions import ServiceUnavailable, ServiceWarning

from events import state

log = logging.getLogger(__name__)

#: Seconds for which a report is good.
KNOWN_SECONDS = 1.0
#: What a check may take; the library gives it a second more.
_TIMEOUT = timedelta(seconds=1)


@dataclass(slots=True)
class Part:
    """One part of the service.

    Attributes:
        word: ok, down, or warning for what the service can do without for a while.
        detail: in a few words how it is.
    """

    name: str
    word: str
    detail: str
    milliseconds: float

    @property
    def down(self) -> bool:
        return self.word == "down"


@dataclass(slots=True)
class Report:
    """How all parts are."""

    parts: list[Part] = field(default_factory=list)

    @property
    def down(self) -> list[str]:
        return [part.name for part in self.parts if part.down]

    @property
    def ready(self) -> bool:
        return not self.down


class Database(checks.Database):
    """django-health-check's, with our time-out. It must take writes as well."""

    timeout = _TIMEOUT

    def run(self) -> None:
        try:
            super().run()
            if refusal := state.read_only():
                raise ServiceUnavailable(refusal)
        finally:
            connection.close()


class Cache(checks.Cache):
    """django-health-check's, with a name of its own for what it writes."""

    def __init__(self) -> None:
        # Its timeout is also how long what it writes stays.
        super().__init__(key_prefix="health", timeout=_TIMEOUT)


class StateCheck(HealthCheck):
    """A question to state.py."""

    timeout = _TIMEOUT

    def ask(self) -> state.Part:
        raise NotImplementedError

    def run(self) -> None:
        try:
            part = self.ask()
        finally:
            # Of a thread that nobody else looks after.
            connection.close()
        if not part.well:
            raise self.complaint(part.detail)

    complaint: Callable[[str], Exception] = ServiceUnavailable


class Broker(StateCheck):
    """Takes connections."""

    def ask(self) -> state.Part:
        return state.broker()


class Worker(StateCheck):
    """Has said lately that it is there, and stores what is due.

    Its main process says so, so a pool that is busy makes no difference; one that stores nothing does, for any reason.
    """

    def ask(self) -> state.Part:
        return state.workers()


class Beat(StateCheck):
    """Rings for what was forgotten. Without it all goes on as long as no ring gets lost, so it is a warning."""

    complaint = ServiceWarning

    def ask(self) -> state.Part:
        return state.beat()


class Backlog(StateCheck):
    """Nothing has been due longer than READY_MAX_PENDING_SECONDS."""

    def ask(self) -> state.Part:
        waited = state.oldest_pending_seconds() or 0.0
        limit = settings.READY_MAX_PENDING_SECONDS
        well = not limit or waited <= limit
        return state.Part("pending", well, f"a batch has been due for {waited:.0f} s, more than {limit} s")


#: In the order in which one would look.
CHECKS: dict[str, Callable[[], HealthCheck]] = {
    "database": Database,
    "cache": Cache,
    "broker": Broker,
    "worker": Worker,
    "beat": Beat,
    "pending": Backlog,
}


class _Known:
    report: Report | None = None
    at = float("-inf")


_asking = threading.Lock()
# A thread that hangs is not asked again; when all do, every check runs out of time, which is the right answer.
_threads = ThreadPoolExecutor(max_workers=2 * len(CHECKS), thread_name_prefix="health")


def report() -> Report:
    """How all parts are; from at most KNOWN_SECONDS ago, or while somebody else asks, from before."""
    known = _Known.report
    if known and (_fresh() or not _asking.acquire(blocking=False)):
        return known
    if not known:
        _asking.acquire()
    try:
        # Whoever had to wait finds that it has been asked meanwhile.
        if _Known.report is None or not _fresh():
            before, _Known.report = _Known.report, _ask()
            _Known.at = time.monotonic()
            _tell(before, _Known.report)
        return _Known.report
    finally:
        _asking.release()


def _fresh() -> bool:
    return time.monotonic() - _Known.at < KNOWN_SECONDS


def _ask() -> Report:
    async def all_at_once() -> list[HealthCheckResult]:
        return await asyncio.gather(*(check().get_result(_threads) for check in CHECKS.values()))

    results = asyncio.run(all_at_once())
    return Report([_part(name, result) for name, result in zip(CHECKS, results, strict=True)])


def _part(name: str, result: HealthCheckResult) -> Part:
    if result.error is None:
        word, detail = "ok", ""
    else:
        word = "warning" if isinstance(result.error, ServiceWarning) else "down"
        detail = str(result.error.message)
    return Part(name, word, detail, round(result.time_taken * 1000, 1))


def _tell(before: Report | None, now: Report) -> None:
    """A line when it changes, whoever asks how often."""
    was = before.down if before else []
    if now.down and now.down != was:
        reasons = {part.name: part.detail for part in now.parts if part.down}
        log.warning("not ready: %s", ", ".join(f"{name} ({reason})" for name, reason in reasons.items()))
    elif was and not now.down:
        log.info("ready again")
