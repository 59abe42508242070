"""The rows on PostgreSQL: an inbox that is full, drained by 1, 2 and 4 workers at once."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
from django.conf import settings

from bench.figures import Figure, Row
from bench.service import environment, migrate
from bench.workbench import Workbench

#: Where a PostgreSQL answers on which databases may be made.
SERVER = os.environ.get("TEST_DATABASE_URL") or "postgres://postgres@127.0.0.1:5432/postgres"
#: Events in the inbox, and of a publish.
EVENTS = 48_000
BATCH_SIZE = 100
WORKERS = (1, 2, 4)

_FILL = """
import random, sys
from events import inbox, wire
events, size, share = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
ids = list(range(round(events * (1 - share))))
ids += random.choices(ids, k=events - len(ids))
random.shuffle(ids)
for at in range(0, events, size):
    payload = wire.Raw(b'{"n": 1, "text": "an event of the benchmark"}')
    inbox.accept([
        wire.Event(topic=f"topic-{n % 5}", event_id=f"{n * 7919 % events:x}-{n}", source="bench", payload=payload)
        for n in ids[at:at + size]
    ])
"""

_WORK = """
import time
from django.db import connection
from events import store
connection.ensure_connection()
print("ready", flush=True)
input()
events = 0
while (stored := store.store_chunk()[0]).batches:
    events += stored.events
print(events, time.time())
"""


def postgresql(bench: Workbench) -> Row:
    try:
        psycopg.connect(SERVER, connect_timeout=3).close()
    except psycopg.OperationalError:
        return Row("postgresql", "Drained from PostgreSQL", [], [f"Left out: no PostgreSQL answers at {_shown()}."])
    figures = []
    for share in (0.0, 0.2):
        for workers in WORKERS:
            rates = []
            for run in range(bench.runs):
                rates.append(_drained(bench, workers, share))
                bench.say(f"run {run + 1} of {bench.runs}: {workers} workers, {share:.0%} dropped: {rates[-1]:,.0f}/s")
            name = f"{workers} worker{'s' if workers > 1 else ''}, {share:.0%} duplicates"
            figures.append(Figure(name, "events/s", rates))
    return Row(
        "postgresql",
        f"An inbox of {EVENTS:,} events in batches of {BATCH_SIZE}, drained from PostgreSQL",
        figures,
        [
            f"The server shares {os.cpu_count()} cores with the workers.",
            "With duplicates, drains also wait for each other: which of two is one is known when the other commits.",
        ],
    )


def _drained(bench: Workbench, workers: int, share: float) -> float:
    """Events a second from the common start to the last commit."""
    name = f"bench_{uuid4().hex[:12]}"
    with psycopg.connect(SERVER, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}".encode())
        try:
            url = urlunsplit(urlsplit(SERVER)._replace(path=f"/{name}"))
            variables = environment(
                bench.folder / name,
                settings_module="aggregator_project.settings",
                DATABASE_URL=url,
                # Nobody listens: what it rings for is drained here.
                CELERY_BROKER_URL="amqp://127.0.0.1:1//",
                LOG_LEVEL="ERROR",
            )
            migrate(variables)
            _python(_FILL, str(EVENTS), str(BATCH_SIZE), str(share), variables=variables).communicate()
            with psycopg.connect(url, autocommit=True) as filled:
                filled.execute("VACUUM ANALYZE")
            running = [_python(_WORK, variables=variables) for _ in range(workers)]
            for process in running:
                assert process.stdout is not None  # noqa: S101 (it is a pipe)
                process.stdout.readline()
            start = time.time()
            with ThreadPoolExecutor() as pool:
                said = [answer.split() for answer in pool.map(_start, running)]
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    return sum(int(events) for events, _ in said) / (max(float(at) for _, at in said) - start)


def _start(worker: "subprocess.Popen[str]") -> str:
    return worker.communicate("\n")[0]


def _python(program: str, *arguments: str, variables: dict[str, str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", f"import django; django.setup()\n{program}", *arguments]
    return subprocess.Popen(  # noqa: S603 (ours)
        command, cwd=settings.BASE_DIR, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _shown() -> str:
    return SERVER.rpartition("@")[2]
