"""What a publish and a chunk cost, in statements, commits, calls and pages: the same on every machine, however busy.

Seconds are for `make bench`. These fail when somebody adds a statement, a commit or a round trip to what runs thousands
of times a second. Who makes something cheaper lowers the number here; who has to make it dearer says why in the commit.
"""

import io
import logging
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest
from django.conf import settings
from django.core.cache import cache
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection
from django.utils import timezone
from kombu.messaging import Producer

from events import inbox, store, tasks
from events.models import Batch, Event
from publisher import sample

pytestmark = [
    # Commits are counted, so there must be some: no transaction around the test.
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif("connection.vendor != 'sqlite'", reason="counts what SQLite is asked to do"),
]

Post = Callable[[bytes], None]

#: Calls of Python functions that one publish of one event takes at most, from the WSGI server's call to the answer.
#: Django and its libraries make most of them, so releases of theirs move it a little.
CALLS_OF_A_SINGLE = 640
#: Calls that each further event of a batch adds at most, at the door and in the drain.
CALLS_OF_AN_EVENT_AT_THE_DOOR = 5
CALLS_OF_AN_EVENT_IN_THE_DRAIN = 6


@pytest.fixture
def post() -> Post:
    """Publishes a body as gunicorn would: through the WSGI app, without a test client around it."""
    application = WSGIHandler()

    def publish(body: bytes) -> None:
        environment = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/publish",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "8080",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.url_scheme": "http",
        }
        said: list[str] = []

        def start(status: str, *_: Any) -> Any:
            said.append(status)

        answer = application(environment, start)
        text = b"".join(answer)
        answer.close()
        assert said == ["202 Accepted"], text

    # What is done once a process: imports, compiled statements, the first look at what is pending.
    for body in bodies(3, 1) + bodies(1, 100):
        publish(body)
    store.drain(seconds=1)
    return publish


def bodies(count: int, size: int, *, duplicates: float = 0.0) -> list[bytes]:
    """Publishes of so many events each that no other test had."""
    events = list(sample.generate(count * size, duplicates=duplicates, fresh=True))
    return [msgspec.json.encode(events[first : first + size]) for first in range(0, len(events), size)]


class Database:
    """What this thread's connection was asked to do."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.commits = 0
        self._raw = connection.connection

    def note(self, execute: Any, sql: str, *rest: Any) -> Any:
        self.statements.append(shortened(sql))
        return execute(sql, *rest)

    def trace(self, sql: str) -> None:
        # A write outside of a transaction is one.
        writes = sql.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE", "REPLACE"))
        self.commits += sql == "COMMIT" or (writes and not self._raw.in_transaction)


def shortened(sql: str) -> str:
    """`INSERT INTO "events_batch" …` as `INSERT batch`."""
    table = re.search(r'"events_(\w+)"', sql)
    return " ".join(filter(None, [sql.split()[0], table and table[1]]))


@contextmanager
def watched() -> Iterator[Database]:
    connection.ensure_connection()
    seen = Database()
    connection.connection.set_trace_callback(seen.trace)
    try:
        with connection.execute_wrapper(seen.note):
            yield seen
    finally:
        connection.connection.set_trace_callback(None)


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Counts calls of Python functions; C's have no frame of their own and are left out."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            calls[frame.f_code.co_qualname] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(before)


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of the cache and the messages to the broker."""
    seen: list[str] = []
    backend: Any = type(cache._connections["default"] if hasattr(cache, "_connections") else cache)
    for name in ("add", "get", "set", "delete", "touch", "incr", "get_many", "set_many", "has_key"):
        monkeypatch.setattr(backend, name, noted(seen, f"cache.{name}", getattr(backend, name)))
    monkeypatch.setattr(Producer, "publish", noted(seen, "message", Producer.publish))
    return seen


def noted(seen: list[str], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def noting(*arguments: Any, **named: Any) -> Any:
        seen.append(name)
        return call(*arguments, **named)

    return noting


def log_pages(act: Callable[[], object]) -> int:
    """Pages that were written to the write-ahead log (https://sqlite.org/fileformat2.html#walformat)."""
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        cursor.execute("PRAGMA page_size")
        page = int(cursor.fetchone()[0])
    act()
    size = Path(f"{connection.settings_dict['NAME']}-wal").stat().st_size
    return max(0, size - 32) // (page + 24)


def test_a_publish_is_one_statement_and_one_commit(post: Post) -> None:
    for size in (1, 100):
        [body] = bodies(1, size)
        with watched() as database:
            post(body)
        assert database.statements == ["INSERT batch"]
        assert database.commits == 1


def test_publishes_that_wait_together_share_a_statement_and_a_commit(post: Post) -> None:
    # Threads take turns at will; what they find waiting is what counts, so it is put there.
    waiting = [inbox._Waiting(batch_of(body)) for body in bodies(8, 1)]
    group = inbox.GroupCommit()
    group._waiting.extend(waiting)
    with watched() as database:
        group._write()
    assert all(one.done and not one.error for one in waiting)
    assert database.statements == ["INSERT batch"]
    assert database.commits == 1


def batch_of(body: bytes) -> Batch:
    now = timezone.now()
    return Batch(accepted_at=now, next_attempt_at=now, received=1, body=body, size=len(body))


def test_a_publish_rings_once_and_then_asks_once_whether_it_rings(post: Post, trips: list[str]) -> None:
    cache.clear()
    first, second = bodies(2, 1)
    post(first)
    # The task, and the event about it that Flower shows.
    assert trips == ["cache.add", "message", "message"]
    trips.clear()
    post(second)
    assert trips == ["cache.add"]


def test_a_publish_writes_three_pages(post: Post) -> None:
    """The row's, the one of the index of what is pending, and the last id's; now and then one that was full splits."""
    written = [log_pages(lambda body=body: post(body)) for body in bodies(20, 1)]  # type: ignore[misc]
    assert sorted(written)[len(written) // 2] <= 3


def test_a_publish_calls_few_python_functions(post: Post) -> None:
    [body] = bodies(1, 1)
    with counted_calls() as calls:
        post(body)
    assert calls.total() <= CALLS_OF_A_SINGLE, calls.most_common(20)


def test_an_event_of_a_batch_costs_few_calls_at_the_door(post: Post) -> None:
    [small], [large] = bodies(1, 100), bodies(1, 1_100)
    with counted_calls() as few:
        post(small)
    with counted_calls() as many:
        post(large)
    each = (many.total() - few.total()) / 1_000
    assert each <= CALLS_OF_AN_EVENT_AT_THE_DOOR, (many - few).most_common(20)


@pytest.fixture(autouse=True)
def _nobody_traces_or_debugs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What is told of a chunk at debug level, or to a collector, is looked up for it."""
    monkeypatch.setattr(store.tracing, "ON", False)
    caplog.set_level(logging.INFO, store.log.name)


#: A chunk, whatever it holds: what is due and its bodies; with the lock, what is still due, whether any key was erased,
#: the events, five counters made and added to, and the receipts.
CHUNK = [
    *("SELECT batch", "SELECT batch", "BEGIN", "SELECT batch", "SELECT erasure", "INSERT event"),
    *("INSERT topictotal", "UPDATE topictotal"),
    *("INSERT topicminute", "UPDATE topicminute"),
    *("INSERT sourcetotal", "UPDATE sourcetotal"),
    *("INSERT minute", "UPDATE minute"),
    *("INSERT delay", "UPDATE delay"),
    "UPDATE batch",
]


@pytest.mark.parametrize(("count", "size"), [(1, 1), (300, 1), (15, 100)])
def test_a_chunk_takes_the_same_statements_and_one_commit_whatever_it_holds(post: Post, count: int, size: int) -> None:
    for body in bodies(count, size):
        post(body)
    with watched() as database:
        stored, _ = store.store_chunk()
    assert (stored.batches, stored.events) == (count, count * size)
    assert Counter(database.statements) == Counter(CHUNK)
    assert database.commits == 1


def test_an_empty_inbox_costs_one_statement_and_no_lock() -> None:
    with watched() as database:
        assert store.store_chunk() == (store.Stored(), False)
    assert database.statements == ["SELECT batch"]


def test_duplicates_add_few_statements_to_a_chunk(post: Post) -> None:
    published = bodies(10, 100)
    for body in published:
        post(body)
    store.store_chunk()
    for body in published[:3] + bodies(12, 100):
        post(body)
    with watched() as database:
        stored, _ = store.store_chunk()
    assert stored.duplicates == 300
    topics = Event.objects.order_by().values("topic").distinct().count()
    # Which were new, then topic by topic what is stored of those that were not, then the log of them.
    more = {"SELECT event": 1 + topics, "INSERT duplicate": 1}
    assert Counter(database.statements) == Counter(CHUNK) + Counter(more)
    assert database.commits == 1


def test_a_drain_makes_one_trip_to_the_cache_and_none_to_the_broker(post: Post, trips: list[str]) -> None:
    for body in bodies(10, 1):
        post(body)
    trips.clear()
    tasks.process_inbox()
    assert trips == ["cache.delete"]


def test_an_event_costs_few_calls_in_the_drain(post: Post) -> None:
    totals = []
    for count in (2, 12):
        for body in bodies(count, 100, duplicates=0.2):
            post(body)
        with counted_calls() as calls:
            store.store_chunk()
        totals.append(calls)
    few, many = totals
    each = (many.total() - few.total()) / 1_000
    assert each <= CALLS_OF_AN_EVENT_IN_THE_DRAIN, (many - few).most_common(20)


def test_a_worker_loads_no_page_of_the_admin() -> None:
    """Nor the API: together they are a quarter of its memory."""
    program = (
        "import sys; import aggregator_project.celery as it; it.app.loader.import_default_modules(); "
        "it.refuse_wrong_settings(); "
        "print(*(name for name in sys.modules if name.startswith(('events.admin', 'events.api.urls'))))"
    )
    ours = {"DJANGO_SETTINGS_MODULE": "aggregator_project.settings", "PART": "worker"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | ours,
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
