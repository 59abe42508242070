"""The faults, one function a kind: each breaks something that runs, and returns when recovering can begin."""

import fcntl
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psutil
import redis

from tests.faults.service import PROJECT, Service, environment, manage, runs, until

#: Processes killed, by kind.
Kills = Counter[str]

#: Seconds that the broker stays away. A stranger locks the database for half of it.
AWAY_SECONDS = 20.0


class Faults:
    """Breaks one service and counts the processes that were killed. `away_seconds` is how long a broker stays away."""

    def __init__(self, service: Service, chance: random.Random, *, away_seconds: float = AWAY_SECONDS) -> None:
        self.service = service
        self.chance = chance
        self.away_seconds = away_seconds
        self.kills: Kills = Counter()

    @property
    def kinds(self) -> dict[str, Callable[[], None]]:
        """Every kind by its name."""
        return {
            "pool process": self.pool_process,
            "Celery main": self.celery_main,
            "beat": self.beat,
            "gunicorn worker": self.gunicorn_worker,
            "gunicorn master": self.gunicorn_master,
            "broker": self.broker,
            "all parts": self.all_parts,
            "supervisor": self.supervisor,
            "FLUSHALL": self.flushall,
            "broker hangs": self.broker_hangs,
            "broker gone": self.broker_gone,
            "broker refuses writes": self.broker_refuses_writes,
            "message lost": self.message_lost,
            "message twice": self.message_twice,
            "two drains": self.two_drains,
            "database locked": self.database_locked,
            "worker frozen": self.worker_frozen,
            "deadly batch": self.deadly_batch,
        }

    def pool_process(self) -> None:
        self._kill("pool process", self._one(lambda: self.service.pool_and_beat()[0]))

    def beat(self) -> None:
        self._kill("beat", self._one(lambda: self.service.pool_and_beat()[1]))

    def celery_main(self) -> None:
        self._kill("Celery main", self._part("worker"))

    def gunicorn_worker(self) -> None:
        self._kill("gunicorn worker", self._one(lambda: self.service.children("web")))

    def gunicorn_master(self) -> None:
        self._kill("gunicorn master", self._part("web"))

    def broker(self) -> None:
        self._kill("broker", self._part("broker"))

    def all_parts(self) -> None:
        """Every process but the supervisor, in any order."""
        _, *parts = self.service.processes()
        self.chance.shuffle(parts)
        for process in parts:
            self._kill("all parts", process)

    def supervisor(self) -> None:
        """supervisord, with which everything goes; then `manage.py up` again, as an init system would."""
        processes = self.service.processes()
        self._kill("supervisor", self.service.supervisor)
        self.service.reap()
        until(lambda: not any(map(runs, processes)), "nothing outlives the supervisor")
        self.service.start()

    def flushall(self) -> None:
        self._with_broker(lambda broker: broker.flushall())

    def broker_hangs(self) -> None:
        """Neither answers nor ends a connection."""
        broker = self._part("broker")
        broker.suspend()
        time.sleep(self.away_seconds)
        broker.resume()

    def broker_gone(self) -> None:
        """Refuses connections: its successor is held before it listens."""
        broker = self._part("broker")
        self._kill("broker gone", broker)
        # The tether is held as well as what it becomes.
        successor = until(lambda: self._broker_after(broker), "the supervisor starts another broker")
        successor.suspend()
        time.sleep(self.away_seconds)
        successor.resume()

    def broker_refuses_writes(self, reason: str | None = None) -> None:
        """Takes connections and answers, but every write with an error. The reason is one of REFUSALS, or any."""
        refuse = REFUSALS[reason or self.chance.choice(list(REFUSALS))]
        self._with_broker(lambda broker: refuse(broker, self._part("broker")))
        time.sleep(self.away_seconds / 4)
        self._with_broker(_write_again)

    def message_lost(self) -> None:
        """Takes one off the queue, as a worker does that dies before it has written it down."""
        self._with_broker(lambda broker: broker.brpop("celery", timeout=4))

    def message_twice(self) -> None:
        def double(broker: "redis.Redis") -> None:
            taken: Any = broker.brpop("celery", timeout=4)
            if taken:
                broker.lpush("celery", taken[1], taken[1])

        self._with_broker(double)

    def two_drains(self) -> None:
        """Drains in another process, past the queue, while the worker drains."""
        subprocess.run(
            [sys.executable, "-c", _DRAIN], cwd=PROJECT, env=environment(self.service.data), check=True, timeout=60
        )

    def database_locked(self) -> None:
        """A stranger holds SQLite's writer lock."""
        with closing(sqlite3.connect(self.service.data / "aggregator.sqlite3", timeout=30)) as stranger:
            stranger.execute("BEGIN IMMEDIATE")
            time.sleep(self.away_seconds / 2)
            stranger.rollback()

    def worker_frozen(self) -> None:
        """Stops a process of the worker while it holds SQLite's writer lock."""
        pool = self._one(lambda: self.service.pool_and_beat()[0])
        until(lambda: self.stopped_with_the_lock(pool), "it holds the lock")
        time.sleep(self.away_seconds / 2)
        pool.resume()

    def deadly_batch(self) -> None:
        """A batch that never ends being stored, and whose process is killed each time, until it is a dead letter.

        Then it is mended and replayed.
        """
        database = self.service.data / "aggregator.sqlite3"
        with closing(sqlite3.connect(database, timeout=30)) as stranger:
            stranger.executescript(_ENDLESS)
        batch: int = until(lambda: self.service.publish("probe", DEADLY), "it is accepted")
        while self.service.rows(f"SELECT status FROM events_batch WHERE id = {batch}") != [("failed",)]:
            for process in self.service.pool_and_beat()[0]:
                if batch in self.service.in_flight(process):
                    self._kill("deadly batch", process)
            time.sleep(0.02)
        with closing(sqlite3.connect(database, timeout=30)) as stranger:
            stranger.executescript("DROP TRIGGER endless; DROP VIEW endless_numbers")
        replayed = manage(self.service.data, "replay", str(batch))
        assert replayed.returncode == 0, replayed.stderr

    def _kill(self, kind: str, process: psutil.Process) -> None:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            return
        self.kills[kind] += 1

    def stopped_with_the_lock(self, process: psutil.Process) -> bool:
        """Stops the process. Lets it go on, and says so, where it does not hold the lock that writers wait for."""
        process.suspend()
        with (self.service.data / "aggregator.sqlite3-turn").open("wb") as turn:
            # Others let go of it within that time.
            for _ in range(20):
                try:
                    fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(0.02)
                else:
                    process.resume()
                    return False
        return True

    def _part(self, name: str) -> psutil.Process:
        found: psutil.Process = until(lambda: self.service.part(name), f"there is a {name}")
        return found

    def _one(self, candidates: Callable[[], list[psutil.Process]]) -> psutil.Process:
        return self.chance.choice(until(candidates, "there is one to kill"))

    def _broker_after(self, killed: psutil.Process) -> psutil.Process | None:
        """Not that one itself, which may be there for a moment yet."""
        for process in self.service.supervisor.children():
            try:
                if process != killed and runs(process) and "valkey-server" in " ".join(process.cmdline()):
                    return process
            except psutil.Error:
                continue
        return None

    def _with_broker(self, action: Callable[["redis.Redis"], Any]) -> None:
        def done() -> bool:
            try:
                with self.service.redis() as broker:
                    action(broker)
            except redis.RedisError:
                return False
            return True

        until(done, "the broker answers")


def _break_saving(broker: "redis.Redis", process: psutil.Process) -> None:
    """Kills the process that saves, as a full disk would end it."""
    broker.set("faults", 1)
    broker.config_set("save", "3600 1")
    # Microseconds for each key.
    broker.config_set("rdb-key-save-delay", 10_000_000)
    broker.bgsave()
    for saving in process.children():
        saving.kill()
    until(lambda: broker.info("persistence")["rdb_last_bgsave_status"] != "ok", "saving has failed")


#: Why Redis refuses writes, by the word with which its error begins.
REFUSALS: dict[str, Callable[["redis.Redis", psutil.Process], Any]] = {
    "NOREPLICAS": lambda broker, _: broker.config_set("min-replicas-to-write", 1),
    "OOM": lambda broker, _: broker.config_set("maxmemory", 1),
    "READONLY": lambda broker, _: broker.replicaof("127.0.0.1", "1"),
    "MISCONF": _break_saving,
}


def _write_again(broker: "redis.Redis") -> None:
    broker.replicaof("NO", "ONE")
    for name, value in (("min-replicas-to-write", 0), ("maxmemory", 0), ("rdb-key-save-delay", 0), ("save", "")):
        broker.config_set(name, value)


#: The id of an event that is never stored while these are there. A trigger may not have a WITH of its own.
DEADLY = "deadly"
_ENDLESS = f"""
CREATE VIEW endless_numbers AS WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers)
    SELECT n FROM numbers;
CREATE TRIGGER endless BEFORE INSERT ON events_event WHEN NEW.event_id = '{DEADLY}'
    BEGIN SELECT count(*) FROM endless_numbers; END;
"""

_DRAIN = """
import time
import django
django.setup()
from events.store import drain
until = time.monotonic() + 2
while time.monotonic() < until:
    drain(seconds=1)
"""
