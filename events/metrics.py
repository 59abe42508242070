"""What the service counts of itself for Prometheus: by whichever process does it, shown as one (scrape.py).

The counts lie in files in DATA_DIR/run/metrics that prometheus_client maps into memory: to count is to write to memory,
and the kernel keeps it when the process is killed. A process takes the lowest number that no living one has, and goes
on where the last one with that number stopped. So there are as many files as there ever were processes at once, however
often they were started; counters never fall; and parts that share the folder share the numbers, in containers as well,
where process ids mean nothing to each other. A process for whose files the disk has no room counts in memory, for
nobody to see.
"""

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.conf import settings
from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.mmap_dict import MmapedDict

log = logging.getLogger(__name__)

#: Where the files are.
FOLDER: Path = settings.DATA_DIR / "run" / "metrics"

#: Bytes that a file gets at once: several times what the names and labels below can fill.
RESERVED_BYTES = 256 * 1024


class _Number:
    """The number of this process among the living ones: its files carry it."""

    process = 0
    number = 0
    lock = -1
    #: Whether the files have their place on the disk. Else the process counts in memory, and nobody sees its counts.
    has_files = False


def _number() -> int:
    if _Number.process != os.getpid():
        _Number.process = os.getpid()
        try:
            _take_number()
            _Number.has_files = True
        except OSError as error:
            _Number.number, _Number.has_files = -os.getpid(), False
            # Of a DATA_DIR that cannot be written a system check tells (checks.py), and nothing starts.
            if os.access(settings.DATA_DIR, os.W_OK | os.X_OK):
                log.warning(
                    "/metrics does not show what this process counts, as %s cannot be written: %s", FOLDER, error
                )
    return _Number.number


def _take_number() -> None:
    number = 0
    while True:
        lock = os.open(FOLDER / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Locks of this kind belong to the process: a fork does not inherit them, and the kernel frees those of the
            # dead. (lockf, not flock.)
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            number += 1
            continue
        break
    try:
        for file in FOLDER.glob(f"*_{number}.db"):
            if not readable(file):
                file.unlink()
        for kind in ("counter", "histogram"):
            _reserve(FOLDER / f"{kind}_{number}.db")
    except OSError:
        os.close(lock)
        raise
    _Number.number, _Number.lock = number, lock


def _reserve(file: Path) -> None:
    """Gives the file its place on the disk.

    A file with holes that is written through memory ends its process with SIGBUS where the disk is full.

    Raises:
        OSError: the disk has no place for it.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(descriptor, 0, RESERVED_BYTES)
    except OSError:
        if not os.pread(descriptor, 1, 0).strip(b"\0"):
            file.unlink()
        raise
    finally:
        os.close(descriptor)


class _Counts(MmapedDict):
    """What prometheus_client keeps counts in: a file that it maps into memory, or memory alone without one."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if _Number.has_files:
            super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]
            return
        memory = os.memfd_create("counts", os.MFD_CLOEXEC)
        try:
            super().__init__(f"/dev/fd/{memory}")  # type: ignore[no-untyped-call]
        finally:
            os.close(memory)


def readable(file: Path) -> bool:
    """Whether the file holds counts; one that was cut short by a power failure may not."""
    try:
        for _ in MmapedDict.read_all_values_from_file(str(file)):
            pass
    except FileNotFoundError:
        return False
    except Exception as error:
        log.warning("counts in %s cannot be read, and start again at 0: %s", file, error)
        return False
    return True


#: Knows the names of the counts; the values are those of this process.
INSTRUMENTS = CollectorRegistry()

with suppress(OSError):  # _number() says it
    # Not DATA_DIR itself: a command that only looks makes no folder.
    FOLDER.parent.mkdir(mode=0o700, exist_ok=True)
    FOLDER.mkdir(mode=0o700, exist_ok=True)
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(FOLDER)
# What prometheus_client does itself where that variable is set when it is imported, but with numbers of ours.
values.MmapedDict = _Counts  # type: ignore[attr-defined]
values.ValueClass = values.MultiProcessValue(process_identifier=_number)

#: Requests by the view that answered and the status it answered with; until the first byte of a stream.
REQUEST_SECONDS = Histogram(
    "aggregator_request_seconds",
    "Time to answer a request.",
    ["view", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=INSTRUMENTS,
)
PUBLISHES_REFUSED = Counter(
    "aggregator_publishes_refused", "Publishes of which nothing was accepted.", ["reason"], registry=INSTRUMENTS
)
RINGS = Counter("aggregator_rings", "Rings for the inbox to be drained.", ["result"], registry=INSTRUMENTS)
DRAIN_SECONDS = Histogram(
    "aggregator_drain_seconds",
    "Time of a task that stored something.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=INSTRUMENTS,
)
CHUNK_SECONDS = Histogram(
    "aggregator_chunk_seconds",
    "Time of the transaction that stores a chunk, and of waiting for its turn.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
    registry=INSTRUMENTS,
)
CHUNK_EVENTS = Histogram(
    "aggregator_chunk_events",
    "Events in a chunk.",
    buckets=(1, 5, 10, 25, 50, 100, 250, 500, 1000, 2000, 5000),
    registry=INSTRUMENTS,
)
STORE_ERRORS = Counter(
    "aggregator_store_errors",
    "Troubles while storing: with the database, a chunk as a whole, a batch alone, or a batch for the last time.",
    ["what"],
    registry=INSTRUMENTS,
)

#: Looked up once: finding a child by its labels costs more than counting.
RING_SENT, RING_SKIPPED, RING_FAILED = (RINGS.labels(result) for result in ("sent", "skipped", "failed"))
ERROR_OF_DATABASE, ERROR_OF_CHUNK, ERROR_OF_BATCH, DEAD_LETTERS = (
    STORE_ERRORS.labels(what) for what in ("database", "chunk", "batch", "dead_letter")
)
#: Why a publish is refused.
REFUSALS = (
    "invalid",
    "no_key",
    "wrong_key",
    "too_large",
    "content_type",
    "key_reused",
    "throttled",
    "inbox_full",
    "database",
    "error",
)
for _reason in REFUSALS:
    PUBLISHES_REFUSED.labels(_reason)

_by_view: dict[tuple[str, int], Any] = {}


def answered(view: str, status: int, seconds: float) -> None:
    """Counts a request."""
    child = _by_view.get((view, status))
    if child is None:
        child = _by_view[view, status] = REQUEST_SECONDS.labels(view, str(status))
    child.observe(seconds)
