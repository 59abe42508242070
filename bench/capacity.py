"""How many cores, hosts and bytes a rate of events needs: `python -m bench.capacity`. docs/scaling.md explains it.

In go costs that were measured on one machine, out comes what they add up to elsewhere: an estimate to plan with, until
there is a test on the machines in question. `--measure` takes the costs anew on DATABASE_URL, `--fill` shows how the
cost of storing grows with what is stored.
"""

import argparse
import json
import math
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from publisher import Client

#: Events a second that the table is made for.
RATES = (1_000, 10_000, 100_000, 1_000_000)
#: Share of the events that repeat an earlier one.
DUPLICATES = 0.2
#: Share of its cores that a host may have busy: the rest is for bursts, for catching up, and for the host that fails.
BUSY = 0.5
#: Cores of a host.
HOST_CORES = 16
#: Bytes of an event as it is published, its payload 110 of them.
EVENT_BYTES = 250
#: Bytes a second that the log of one PostgreSQL primary may take: what replicas, archives and checkpoints keep up with.
LOG_BYTES = 200_000_000
#: Microseconds that SQLite's writer is held for a publish's commit: 4,900 a second, each on disk.
SQLITE_COMMIT = 204
#: Connections that publish at once while costs are measured: what waits together is written together.
CONNECTIONS = 16
#: Bytes of the index of a key, of 36 random characters and a short topic. It is written at random places, so what of it
#: is not in memory is read from disk for each event.
KEY_BYTES = 89
#: Databases that hold all of it: the primary, and a replica that waits for it.
COPIES = 2


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Microseconds of processor time, and bytes.

    Attributes:
        publish, event: of the web part, for a publish, and for each event in it.
        accept, store: of the database, for a publish (inbox row, later its receipt), and for each event.
        drain: of a worker for each event, that of the database left out where it is another process.
        row: of the database's disk for each stored event, with its indexes and its share of receipts and log.
        log: of the database's write-ahead log for each event.
    """

    publish: float
    event: float
    accept: float
    store: float
    drain: float
    row: float
    log: float


#: Measured with `python -m bench.capacity --measure`; docs/scaling.md says where and when. On SQLite the database's
#: work is done by the web part and the worker themselves.
SQLITE = Costs(publish=2050, event=8.6, accept=0, store=0, drain=27, row=490, log=0)
POSTGRESQL = Costs(publish=2500, event=11, accept=560, store=35, drain=16, row=700, log=940)


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What a rate needs: cores of each part that are busy, primaries to hold them, bytes."""

    web: float
    workers: float
    database: float
    primaries: int
    network: float
    log: float
    disk_a_day: float
    keys_a_day: float

    @property
    def hosts(self) -> int:
        """Web and workers on hosts of their own kind, the databases each on one, with its copies."""
        service = math.ceil((self.web + self.workers) / (HOST_CORES * BUSY))
        return max(2, service) + COPIES * self.primaries


def needed(rate: float, *, batch: float, costs: Costs = POSTGRESQL) -> Needed:
    """What it takes to store a rate for good.

    Args:
        rate: events a second, duplicates among them.
        batch: events in a publish.
        costs: what they cost.
    """
    publishes = rate / batch
    database = (publishes * costs.accept + rate * costs.store) / 1e6
    log = rate * costs.log
    return Needed(
        web=(publishes * costs.publish + rate * costs.event) / 1e6,
        workers=rate * costs.drain / 1e6,
        database=database,
        primaries=max(1, math.ceil(database / (HOST_CORES * BUSY)), math.ceil(log / LOG_BYTES)),
        # From publishers to web, to the inbox, to a worker, as rows to the database; and as log to the copies.
        network=rate * EVENT_BYTES * 4 + log * (COPIES - 1),
        log=log,
        disk_a_day=rate * (1 - DUPLICATES) * costs.row * 86_400 * COPIES,
        keys_a_day=rate * (1 - DUPLICATES) * KEY_BYTES * 86_400,
    )


def table(batch: float) -> Table:
    """The rates beside what they need."""
    shown = Table(box=box.MARKDOWN)
    for name in ("events/s", "cores: web", "workers", "database", "primaries", "hosts", "log MB/s", "network Gbit/s"):
        shown.add_column(name, justify="right")
    shown.add_column("disk GB/day", justify="right")
    shown.add_column("of it keys", justify="right")
    for rate in RATES:
        of = needed(rate, batch=batch)
        shown.add_row(
            f"{rate:,}",
            f"{of.web:,.2f}",
            f"{of.workers:,.2f}",
            f"{of.database:,.2f}",
            f"{of.primaries:,}",
            f"{of.hosts:,}",
            f"{of.log / 1e6:,.1f}",
            f"{of.network * 8 / 1e9:,.2f}",
            f"{of.disk_a_day / 1e9:,.0f}",
            f"{of.keys_a_day / 1e9:,.0f}",
        )
    return shown


def on_sqlite(batch: float) -> str:
    """The most that one machine with SQLite stores: its writer takes turns, web parts among them."""
    # A publish waits for the disk once, a chunk of 2,000 events once.
    writer = SQLITE.drain + SQLITE_COMMIT / batch
    rate = 1e6 / writer * BUSY
    disk = rate * (1 - DUPLICATES) * SQLITE.row * 86_400
    web = rate * (SQLITE.publish / batch + SQLITE.event) / 1e6
    return (
        f"SQLite, publishes of {batch:,.0f}: its writer is half busy at {rate:,.0f} events/s, "
        f"with {web:,.1f} cores for web; {disk / 1e9:,.0f} GB a day"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=float, nargs="+", default=[100, 1], help="events in a publish (100 and 1)")
    parser.add_argument("--measure", action="store_true", help="measure the costs, on DATABASE_URL if it is set")
    parser.add_argument("--fill", type=int, metavar="ROWS", help="store so many rows on SQLite, timing each tenth")
    options = parser.parse_args()
    console = Console(width=140)
    if options.measure:
        console.print(measured(say=console.print))
    elif options.fill:
        for rows, microseconds, size in filled(options.fill):
            console.print(f"{rows:>12,} rows  {microseconds:6.1f} µs a row  {size / 1e6:8,.0f} MB")
    else:
        for batch in options.batch:
            console.print(f"PostgreSQL, publishes of {batch:,.0f}:", table(batch), on_sqlite(batch), "", sep="\n")


#: Publishes of 100 events, and of one, that are measured.
MANY, SINGLE = 600, 3_000

# --- Measuring --------------------------------------------------------------------------------------------------------


def measured(*, say: Any) -> Costs:
    """Costs of this machine, from the processor time of a running stack: other load does not change them much."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bench.settings")
    import django

    django.setup()
    from bench.service import Service, environment, running

    url = os.environ.get("DATABASE_URL", "")
    with TemporaryDirectory(prefix="aggregator-capacity-") as name:
        folder = Path(name)
        more = {"DATABASE_URL": url} if url else {}
        with running(folder, environment(folder, settings_module="aggregator_project.settings", **more)) as service:

            def spent() -> dict[str, float]:
                parts = {part: sum(service.processor_seconds(part).values()) for part in ("web", "worker")}
                return {**parts, "database": _postgresql_seconds(url), "log": float(_log_bytes(url)), "at": time.time()}

            def load(service: Service, publishes: int, size: int) -> dict[str, float]:
                bodies = [_events(size) for _ in range(publishes)]
                service.settle()
                before = spent()

                def publish(some: list[list[dict[str, Any]]]) -> None:
                    with Client(service.url) as client:
                        for body in some:
                            client.publish(body)

                with ThreadPoolExecutor(CONNECTIONS) as threads:
                    list(threads.map(publish, (bodies[first::CONNECTIONS] for first in range(CONNECTIONS))))
                service.settle()
                after = spent()
                return {key: after[key] - before[key] for key in before}

            load(service, 20, 100)
            before = _size(url, service.database)
            many = load(service, MANY, 100)
            row = (_size(url, service.database) - before) / (MANY * 100 * (1 - DUPLICATES))
            single = load(service, SINGLE, 1)
            idle_from = spent()
            time.sleep(5)
            idle = {key: (value - idle_from[key]) / 5 for key, value in spent().items()}
    say(f"100 in a publish: {many}\n1 in a publish: {single}\nidle, a second: {idle}")

    def split(key: str) -> tuple[float, float]:
        """Microseconds a publish and an event, from the two loads, without what an idle stack takes."""
        of_many = (many[key] - idle[key] * many["at"]) / MANY * 1e6
        of_single = (single[key] - idle[key] * single["at"]) / SINGLE * 1e6
        event = max(0.0, (of_many - of_single) / 99)
        return of_single - event, event

    publish, event = split("web")
    accept, store = split("database")
    drain_publish, drain = split("worker")
    return Costs(
        publish=round(publish),
        event=round(event, 1),
        accept=round(accept),
        store=round(store, 1),
        drain=round(drain + drain_publish / 100, 1),
        row=round(row),
        log=round(many["log"] / (MANY * 100)),
    )


def _events(size: int) -> list[dict[str, Any]]:
    """A publish: random keys, some of which come twice. Of one event, some publishes are repeats of earlier ones."""
    new = max(1, round(size * (1 - DUPLICATES)))
    keys = [str(uuid.uuid4()) for _ in range(new)]
    return [
        {
            "topic": f"topic-{number % 5}",
            "event_id": key,
            "source": "capacity",
            "timestamp": "2026-01-01T00:00:00Z",
            "payload": {"user_id": number, "email": f"user{number}@example.com", "plan": "standard", "note": "x" * 40},
        }
        for number, key in enumerate([*keys, *keys[: size - new]])
    ]


def _postgresql_seconds(url: str) -> float:
    """Processor time of all processes of the server at the URL, which must run on this machine."""
    if not url:
        return 0.0
    folder = _ask(url, "SHOW data_directory")
    server = psutil.Process(int(Path(folder, "postmaster.pid").read_text().split()[0]))
    # Those of connections that have ended are in the server's own.
    total = sum(server.cpu_times()[:4])
    for process in server.children():
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return float(total)


def _ask(url: str, sql: str) -> Any:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(sql).fetchone()
        return row[0] if row else 0


def _log_bytes(url: str) -> int:
    return int(_ask(url, "SELECT pg_current_wal_lsn() - '0/0'")) if url else 0


def _size(url: str, database: Path) -> int:
    """Bytes of the database."""
    if url:
        return int(_ask(url, "SELECT pg_database_size(current_database())"))
    connection = sqlite3.connect(database)
    [pages], [size] = (
        connection.execute("PRAGMA page_count").fetchone(),
        connection.execute("PRAGMA page_size").fetchone(),
    )
    connection.close()
    return int(pages) * int(size)


def filled(rows: int, *, chunk: int = 2_000) -> Iterator[tuple[int, float, int]]:
    """Stores rows with random keys into the service's own tables on SQLite, in transactions like a chunk's.

    Yields:
        After each tenth: rows so far, microseconds of wall-clock time a row of that tenth, bytes of the file.
    """
    with TemporaryDirectory(prefix="aggregator-fill-", dir=os.environ.get("FILL_DIR")) as folder:
        os.environ |= {"DATA_DIR": folder, "DJANGO_SETTINGS_MODULE": "aggregator_project.settings"}
        os.environ.pop("DATABASE_URL", None)
        import django

        django.setup()
        from django.core.management import call_command
        from django.db import connection

        call_command("migrate", verbosity=0)
        connection.ensure_connection()
        raw = connection.connection
        moment = "2026-01-01 00:00:00.000000"
        payload = json.dumps(_events(1)[0]["payload"])
        sql = (
            "INSERT OR IGNORE INTO events_event (topic, event_id, source, timestamp, payload, received_at, batch_id) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)"
        )
        done = 0
        for _ in range(10):
            began = time.perf_counter()
            until = done + rows // 10
            while done < until:
                values: Sequence[tuple[Any, ...]] = [
                    (f"topic-{n % 5}", str(uuid.uuid4()), "capacity", moment, payload, moment, done // 100)
                    for n in range(chunk)
                ]
                raw.execute("BEGIN IMMEDIATE")
                raw.executemany(sql, values)
                raw.execute("COMMIT")
                done += chunk
            taken = time.perf_counter() - began
            yield done, taken / (rows // 10) * 1e6, _size("", Path(folder) / "aggregator.sqlite3")


if __name__ == "__main__":
    main()
