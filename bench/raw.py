"""What SQLite itself can do here: `executemany INSERT OR IGNORE` of the same rows into the same tables."""

import sqlite3
import time
from pathlib import Path

import msgspec

from bench.load import SERIES, events, token

#: Rows in one transaction, as many as events in a full chunk of the service.
CHUNK = 2_000
#: Events offered in one run: a second or so.
EVENTS = 60_000

INSERT = (
    "INSERT OR IGNORE INTO events_event (topic, event_id, source, timestamp, payload, received_at, batch_id)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)


class Raw:
    """A migrated database file, written with nothing between it and the rows."""

    def __init__(self, database: Path, batch_size: int, *, duplicates: float) -> None:
        self._connection = sqlite3.connect(database, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        # Made before the clock starts: here only the database counts.
        self._rows = [
            (
                event["topic"],
                event["event_id"],
                event["source"],
                event["timestamp"],
                msgspec.json.encode(event["payload"]).decode(),
                "2026-01-01 00:00:00.000001",
                1 + number // batch_size,
            )
            for number, event in zip(range(EVENTS), events(batch_size, duplicates=duplicates), strict=False)
        ]

    def close(self) -> None:
        self._connection.close()

    def run(self) -> float:
        """Stores the rows under ids of their own. Returns rows offered per second, dropped duplicates among them."""
        mine = f"{token()}0001"
        rows = [(topic, name.replace(SERIES, mine), *rest) for topic, name, *rest in self._rows]
        started = time.perf_counter()
        for first in range(0, len(rows), CHUNK):
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(INSERT, rows[first : first + CHUNK])
            self._connection.execute("COMMIT")
        return len(rows) / (time.perf_counter() - started)
