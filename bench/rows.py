"""The rows of the benchmark: each measures one thing, with what it is compared to in the same run.

What is compared takes turns (A B A B …), so that a machine that drifts drifts for both; a ratio is the median of the
ratios of neighbours. A row for another database goes into ROWS like these: it starts its stack with a DATABASE_URL.
"""

import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import httpx
from django.conf import settings

from bench.figures import Figure, Row
from bench.load import generator
from bench.postgresql import postgresql
from bench.raw import Raw
from bench.service import Broken, Service, environment, migrate
from bench.workbench import DUPLICATES, Measured, Workbench
from publisher.load import percentile

#: Events that a small database holds, to compare a large one with.
SMALL = 100_000
#: A read that takes this many times as long at the large size counts as changed: neighbours of one run differ by less.
NOISE = 1.25
#: Seconds of a load on the design replaced, and on ours beside it.
REPLACED_SECONDS = 2.0
#: Events of the row about memory.
MEMORY_EVENTS = 1_000_000
#: Most looks a second at whether a probe can be queried, and most seconds it may take.
LOOK_SECONDS = 0.005
PROBE_SECONDS = 10.0
#: Seconds between two probes.
PROBE_PAUSE_SECONDS = 0.1


def singles(bench: Workbench) -> Row:
    service = bench.service()
    bench.warm_up(service, 1, paths=("/empty", ""))
    runs: list[Measured] = []
    empty: list[float] = []
    for run in range(bench.runs):
        empty.append(bench.post(f"{service.url}/empty", 1, seconds=bench.seconds).rate)
        runs.append(bench.measure(service, 1))
        bench.say(f"run {run + 1} of {bench.runs}: empty view {empty[-1]:,.0f}/s, stored {runs[-1].stored:,.0f}/s")
    bench.fastest[1] = statistics.median(run.accepted for run in runs)
    return Row(
        "singles",
        "Single-event posts over 16 connections",
        [
            Figure("accepted", "events/s", [run.accepted for run in runs]),
            Figure("stored", "events/s", [run.stored for run in runs], 2_000),
            Figure("a DRF view that does nothing", "requests/s", empty),
            Figure("stored, of the empty view", "", [run.stored / other for run, other in _pairs(runs, empty)], 0.40),
            *_left_over(runs),
        ],
        [f"Load from {generator()}. Every event is a different one."],
    )


def _pairs(runs: list[Measured], others: list[float]) -> "list[tuple[Measured, float]]":
    return list(zip(runs, others, strict=True))


def _left_over(runs: list[Measured], most: float | None = 0) -> list[Figure]:
    return [
        Figure("left over when the load ends", "events", [run.left for run in runs]),
        Figure("left over 1 s later", "events", [run.left_later for run in runs], most, "at most"),
    ]


def _batches(
    bench: Workbench, size: int, *, least: float | None, least_ratio: float | None, most_left: float | None, note: str
) -> Row:
    service = bench.service()
    bench.warm_up(service, size)
    runs: list[Measured] = []
    limits: list[float] = []
    template = bench.folder / "raw"
    variables = environment(template)
    migrate(variables)
    with closing(Raw(template / "data" / "aggregator.sqlite3", size, duplicates=DUPLICATES)) as raw:
        raw.run()
        for run in range(bench.runs):
            limits.append(raw.run())
            runs.append(bench.measure(service, size))
            bench.say(
                f"run {run + 1} of {bench.runs}: executemany {limits[-1]:,.0f}/s, stored {runs[-1].stored:,.0f}/s"
            )
    shutil.rmtree(template)
    bench.fastest[size] = statistics.median(run.accepted for run in runs)
    return Row(
        f"batches-{size}",
        f"Batches of {size:,} with 20 % duplicates",
        [
            Figure("accepted", "events/s", [run.accepted for run in runs]),
            Figure("stored", "events/s", [run.stored for run in runs], least),
            Figure("executemany INSERT OR IGNORE", "events/s", limits),
            Figure(
                "stored, of executemany", "", [run.stored / other for run, other in _pairs(runs, limits)], least_ratio
            ),
            *_left_over(runs, most_left),
        ],
        [f"Load from {generator()}. Stored means processed: four of five stored, one dropped and logged.{note}"],
    )


def batches_100(bench: Workbench) -> Row:
    return _batches(bench, 100, least=35_000, least_ratio=0.35, most_left=0, note="")


def batches_1000(bench: Workbench) -> Row:
    note = " The door takes more than the worker stores: the inbox is there for that, up to INBOX_MAX_EVENTS."
    return _batches(bench, 1_000, least=None, least_ratio=None, most_left=None, note=note)


def latency(bench: Workbench) -> Row:
    service = bench.service()
    figures: list[Figure] = []
    for size in (1, 100):
        if size not in bench.fastest:
            bench.warm_up(service, size)
            bench.fastest[size] = bench.measure(service, size).accepted
        rate = bench.fastest[size] / size / 2
        answers, stored, seen = [], [], []
        for run in range(bench.runs):
            first = _last_batch(service)
            with _Probe(service) as probe:
                answers.append(bench.post(service.url, size, seconds=bench.seconds, rate=rate))
            service.settle()
            stored.append(_delays(service, first))
            seen.append(sorted(probe.waits))
            bench.say(
                f"run {run + 1} of {bench.runs}, {size} an event: {answers[-1].rate:,.0f} of {rate:,.0f} requests/s, "
                f"p99 {answers[-1].p99_ms:.0f} ms"
            )
        what = "a single" if size == 1 else f"a batch of {size}"
        figures += [
            Figure(f"rate, {what}", "requests/s", [load.rate for load in answers]),
            Figure(f"publish p50, {what}", "ms", [load.p50_ms for load in answers]),
            Figure(f"publish p99, {what}", "ms", [load.p99_ms for load in answers], 50, "at most"),
            Figure(f"accepted to stored p50, {what}", "ms", [percentile(of, 50) for of in stored]),
            Figure(f"accepted to stored p99, {what}", "ms", [percentile(of, 99) for of in stored], 250, "at most"),
            Figure(f"answered to queried p50, {what}", "ms", [percentile(of, 50) for of in seen]),
            Figure(f"answered to queried p99, {what}", "ms", [percentile(of, 99) for of in seen], 250, "at most"),
        ]
    return Row(
        "latency",
        "Latency at half of the measured maximum",
        figures,
        [
            f"Load from {generator()}, 64 connections with pauses of random length, so that requests come by chance.",
            "Accepted to stored: accepted_at to processed_at of every receipt; the commit comes right after.",
            "Answered to queried: a probe beside the load publishes one event ten times a second and asks "
            f"GET /events?topic=…&event_id=… for it every {1000 * LOOK_SECONDS:.0f} ms; p99 is of few probes.",
        ],
    )


def _last_batch(service: Service) -> int:
    with closing(sqlite3.connect(f"file:{service.database}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT coalesce(max(id), 0) FROM events_batch").fetchone()[0])


def _delays(service: Service, after: int) -> list[float]:
    """Milliseconds from accepted to stored of every batch after the given one, ascending."""
    statement = (
        "SELECT (julianday(processed_at) - julianday(accepted_at)) * 86400000 FROM events_batch WHERE id > ? ORDER BY 1"
    )
    with closing(sqlite3.connect(f"file:{service.database}?mode=ro", uri=True)) as connection:
        return [delay for (delay,) in connection.execute(statement, [after])]


class _Probe:
    """Publishes an event now and then and looks when it can be queried; milliseconds after the answer."""

    def __init__(self, service: Service) -> None:
        self.waits: list[float] = []
        self._url = service.url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> "_Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        number = 0
        with httpx.Client(base_url=self._url, timeout=30) as http:
            while not self._over.wait(PROBE_PAUSE_SECONDS):
                number += 1
                name = f"probe-{time.time_ns()}-{number}"
                http.post("/publish", json={"topic": "bench.probe", "event_id": name, "source": "bench"})
                answered = time.perf_counter()
                query = {"topic": "bench.probe", "event_id": name}
                while not http.get("/events", params=query).json()["events"]:
                    if time.perf_counter() - answered > PROBE_SECONDS:
                        break
                    time.sleep(LOOK_SECONDS)
                self.waits.append(1000 * (time.perf_counter() - answered))


def replaced(bench: Workbench) -> Row:
    service = bench.service()
    figures: list[Figure] = []
    for size in (1, 100):
        bench.warm_up(service, size)
        ours, theirs = [], []
        for run in range(bench.runs):
            # Short: what it accepts it takes some twenty times as long to store.
            theirs.append(bench.measure(service, size, path="/replaced", seconds=REPLACED_SECONDS))
            ours.append(bench.measure(service, size, seconds=REPLACED_SECONDS))
            bench.say(
                f"run {run + 1} of {bench.runs}, batches of {size}: replaced stored {theirs[-1].stored:,.0f}/s, "
                f"ours {ours[-1].stored:,.0f}/s"
            )
        what = "singles" if size == 1 else f"batches of {size}"
        figures += [
            Figure(f"{what}: accepted, replaced", "events/s", [run.accepted for run in theirs]),
            Figure(f"{what}: stored, replaced", "events/s", [run.stored for run in theirs]),
            Figure(f"{what}: left over 1 s later, replaced", "events", [run.left_later for run in theirs]),
            Figure(f"{what}: stored, ours", "events/s", [run.stored for run in ours]),
            Figure(
                f"{what}: ours, of replaced",
                "",
                [our.stored / other.stored for our, other in zip(ours, theirs, strict=True)],
            ),
        ]
    return Row(
        "replaced",
        "One Celery task a publish with the payload in the message, on the same server",
        figures,
        [f"Load from {generator()}. Same settings, same decoder; bulk_create(ignore_conflicts=True)."],
    )


def reads(bench: Workbench) -> Row:
    with ExitStack() as stack:
        stack.enter_context(bench.stopped())
        small = stack.enter_context(bench.fresh("small", events=SMALL))
        large = stack.enter_context(bench.fresh("large", events=bench.large))
        paths = _paths(small, large)
        figures: list[Figure] = []
        notes = [
            "One reader on one connection, requests to the two databases in turns, each to its whole answer.",
            "Filled with SQL (bench/fill.py), 20 % duplicates, those of seven days in the log.",
        ]
        with ExitStack() as sessions:
            readers = [sessions.enter_context(closing(service.log_in())) for service in (small, large)]
            for name, places in paths.items():
                bench.say(name)
                waits = _in_turns(readers, places, seconds=max(1.0, bench.seconds / 4) * bench.runs)
                medians = [statistics.median(of) for of in waits]
                bound = NOISE if name in ("GET /stats", "GET /events, first page") else None
                figures += [
                    Figure(f"{name}, {SMALL:,} events", "ms", [medians[0]]),
                    Figure(f"{name}, {bench.large:,} events", "ms", [medians[1]]),
                    Figure(f"{name}, slower by", "", [medians[1] / medians[0]], bound, "at most"),
                ]
    return Row("reads", f"Reads with {SMALL:,} and with {bench.large:,} events stored", figures, notes)


def _paths(small: Service, large: Service) -> dict[str, list[str]]:
    """What is asked for, by its name: a path for each of the two services."""
    found: dict[str, list[str]] = {}
    for service in (small, large):
        events = service.http.get("/events", params={"limit": 1}).json()["events"]
        topic, source, event_id = (events[0][name] for name in ("topic", "source", "event_id"))
        cursor = _page_1000(service)
        last = service.http.get("/events", params={"limit": 1, "since": "2000-01-01T00:00:00Z"}).json()["events"][0]
        day = str(last["received_at"])[:10]
        window = f"since={day}T00:00:00Z&until={day}T23:59:59Z"
        for name, path in {
            "GET /stats": "/stats",
            "GET /events, first page": "/events",
            "GET /events, page 1,000 by cursor": f"/events?cursor={cursor}",
            "GET /events?topic": f"/events?topic={topic}",
            "GET /events?source": f"/events?source={source}",
            "GET /events?event_id": f"/events?event_id={event_id}",
            "GET /events?topic&event_id": f"/events?topic={topic}&event_id={event_id}",
            "GET /events?since&until, a day": f"/events?{window}",
            "admin, first page": "/admin/",
            "admin, events": "/admin/events/event/",
            "admin, batches": "/admin/events/batch/",
            "admin, duplicates": "/admin/events/duplicate/",
        }.items():
            found.setdefault(name, []).append(path)
    return found


def _page_1000(service: Service) -> str:
    """The cursor to the thousandth page of a hundred events, walked to by the links in larger steps."""
    path = "/events?limit=1000"
    for number in range(108):
        if number == 99:
            path = path.replace("limit=1000", "limit=100")
        path = service.http.get(path).json()["next"]
    return str(httpx.URL(path).params["cursor"])


def _in_turns(readers: list[httpx.Client], paths: list[str], *, seconds: float) -> list[list[float]]:
    """Milliseconds of each answer: a request to the first, one to the second, and so on until the time is over."""
    waits: list[list[float]] = [[] for _ in readers]
    for reader, path in zip(readers, paths, strict=True):
        for _ in range(3):
            answer = reader.get(path)
            if answer.status_code != 200 or answer.url.path != path.split("?")[0]:
                raise Broken(f"GET {path} was answered with {answer.status_code}: {answer.text[:200]}")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for reader, path, found in zip(readers, paths, waits, strict=True):
            started = time.perf_counter()
            reader.get(path)
            found.append(1000 * (time.perf_counter() - started))
    return waits


def growth(bench: Workbench) -> Row:
    with ExitStack() as stack:
        stack.enter_context(bench.stopped())
        services = [
            stack.enter_context(bench.fresh("small", events=SMALL)),
            stack.enter_context(bench.fresh("large", events=bench.large)),
        ]
        rates: list[list[float]] = [[], []]
        for service in services:
            bench.warm_up(service, 100)
        for run in range(bench.runs):
            for service, found in zip(services, rates, strict=True):
                found.append(bench.measure(service, 100).stored)
            bench.say(f"run {run + 1} of {bench.runs}: {rates[0][-1]:,.0f}/s and {rates[1][-1]:,.0f}/s")
    return Row(
        "growth",
        f"Batches of 100 with {SMALL:,} and with {bench.large:,} events stored",
        [
            Figure(f"stored, {SMALL:,} events at the start", "events/s", rates[0]),
            Figure(f"stored, {bench.large:,} events at the start", "events/s", rates[1]),
            Figure("large, of small", "", [large / small for small, large in zip(*rates, strict=True)], 0.8),
        ],
        [f"Load from {generator()}."],
    )


def memory(bench: Workbench) -> Row:
    with bench.stopped(), bench.fresh("memory") as service:
        start = service.memory()
        events = service.books().processed
        warm: dict[str, float] = {}
        while events < MEMORY_EVENTS:
            bench.post(service.url, 100, seconds=min(bench.seconds, 5.0))
            service.settle()
            events = service.books().processed
            warm = warm or service.memory()
            bench.say(f"{events:,} of {MEMORY_EVENTS:,} events")
        end = service.memory()
    parts = [
        Figure(f"{part}, {when}", "MB", [found[part]])
        for part in start
        for when, found in (("at start", start), ("after 1M events", end))
        if part in found
    ]
    return Row(
        "memory",
        "Memory of every process, each with its share of what is shared (PSS)",
        [
            *parts,
            Figure("the whole stack, at start", "MB", [sum(start.values())]),
            Figure("the whole stack, after 1M events", "MB", [sum(end.values())], 450, "at most"),
            Figure("grown since the first load", "", [sum(end.values()) / sum(warm.values())], 1.05, "at most"),
        ],
        ["Batches of 100 with 20 % duplicates. Grown since the first load: what code and caches take is there then."],
    )


def publisher(bench: Workbench) -> Row:
    service = bench.service()
    bench.warm_up(service, 100)
    rates, fastest = [], []
    for run in range(bench.runs):
        fastest.append(bench.measure(service, 100).accepted)
        rates.append(_publisher_rate(service, count=round(fastest[-1] * bench.seconds / 2)))
        bench.say(f"run {run + 1} of {bench.runs}: {rates[-1]:,.0f}/s of {fastest[-1]:,.0f}/s")
    return Row(
        "publisher",
        "`manage.py publish --batch-size 100 --concurrency 8`",
        [
            Figure("accepted", "events/s", rates),
            Figure(
                "of what the load generator gets accepted", "", [a / b for a, b in zip(rates, fastest, strict=True)]
            ),
        ],
        [f"Compared with {generator()}. It makes its events while it sends, and shares the cores with the service."],
    )


def _publisher_rate(service: Service, *, count: int) -> float:
    options = ["--url", service.url, "--count", str(count), "--batch-size", "100", "--concurrency", "8", "--fresh"]
    command: list[Any] = [sys.executable, settings.BASE_DIR / "manage.py", "publish", *options]
    done = subprocess.run(  # noqa: S603 (ours)
        command, env=service.environment | {"COLUMNS": "100"}, capture_output=True, text=True, check=True
    )
    found = re.search(r"events per second\W+([\d,]+)", done.stdout)
    if not found:
        raise Broken(f"The publisher said nothing of its rate:\n{done.stdout}")
    return float(found[1].replace(",", ""))


ROWS: dict[str, Callable[[Workbench], Row]] = {
    "singles": singles,
    "batches-100": batches_100,
    "batches-1000": batches_1000,
    "latency": latency,
    "publisher": publisher,
    "replaced": replaced,
    "memory": memory,
    "reads": reads,
    "growth": growth,
    "postgresql": postgresql,
}
