"""Fills a migrated SQLite file with events, and with the books that storing them would have left.

Straight in SQL, because a service that takes a minute for a million events would take the benchmark's whole time. The
indexes are made afterwards, so they are more compact than those that grew with the events.
"""

import sqlite3
from pathlib import Path

#: Different events of a filled batch, and repeats among them: 20 % of what was published were duplicates.
UNIQUE = 80
REPEATED = 20
#: Days over which the events came in, up to now.
DAYS = 30

_KINDS = (
    ("user.created", "auth-service"),
    ("order.placed", "order-service"),
    ("payment.captured", "payment-service"),
    ("shipment.sent", "warehouse"),
    ("page.viewed", "web-shop"),
)

_BATCHES = """
WITH RECURSIVE numbers(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM numbers WHERE id < :batches),
moments AS (
    SELECT id, strftime('%Y-%m-%d %H:%M:%f', 'now', '-' || ((:batches - id) * :step) || ' seconds') AS at FROM numbers
)
INSERT INTO events_batch (id, accepted_at, status, received, "unique", duplicates, body, size, attempts,
    next_attempt_at, error, processed_at, idempotency_key, fingerprint)
SELECT id, at, 'processed', :unique + :repeated, :unique, :repeated, NULL, 20000, 0, at, '', at, NULL, NULL FROM moments
"""

_EVENTS = """
WITH RECURSIVE numbers(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM numbers WHERE id < :unique)
INSERT INTO events_event (topic, event_id, source, timestamp, payload, received_at, batch_id)
SELECT kind.topic, printf('evt-filled-%08d', batch.id * :unique + numbers.id), kind.source, batch.accepted_at,
    printf('{"user_id":%d,"email":"user%d@example.com","plan":%d}', batch.id, batch.id, numbers.id),
    batch.accepted_at, batch.id
FROM events_batch AS batch CROSS JOIN numbers JOIN temp.kind ON kind.number = (batch.id + numbers.id * 7) % 5
ORDER BY batch.id, numbers.id
"""

#: A script takes no parameters: 80 is UNIQUE, 20 REPEATED, and seven days is what the log of duplicates keeps.
_BOOKS = """
INSERT INTO events_duplicate (topic, event_id, source, received_at, batch_id, payload_differs, payload)
    SELECT topic, event_id, source, received_at, batch_id, 0, '' FROM events_event
    WHERE (id - 1) % 80 < 20 AND received_at > datetime('now', '-7 days');
CREATE TEMP TABLE counted AS
    SELECT topic, source, substr(received_at, 1, 16) || ':00' AS minute, count(*) AS "unique",
        sum((id - 1) % 80 < 20) AS duplicates,
        min(received_at) AS first_seen, max(received_at) AS last_seen
    FROM events_event GROUP BY 1, 2, 3;
INSERT INTO events_topictotal (topic, "unique", duplicates, first_seen, last_seen)
    SELECT topic, sum("unique"), sum(duplicates), min(first_seen), max(last_seen) FROM counted GROUP BY 1;
INSERT INTO events_sourcetotal (source, "unique", duplicates, differing, last_seen)
    SELECT source, sum("unique"), sum(duplicates), 0, max(last_seen) FROM counted GROUP BY 1;
INSERT INTO events_topicminute (topic, minute, "unique", duplicates)
    SELECT topic, minute, sum("unique"), sum(duplicates) FROM counted GROUP BY 1, 2;
INSERT INTO events_minute (minute, "unique", duplicates)
    SELECT minute, sum("unique"), sum(duplicates) FROM counted GROUP BY 1;
INSERT INTO events_delay (minute, milliseconds, events)
    SELECT minute, 33, sum("unique" + duplicates) FROM counted GROUP BY 1;
"""


def fill(database: Path, events: int) -> None:
    """Stores a number of events, rounded to whole batches, as if they had come in over the last DAYS days.

    Args:
        database: a file that was migrated and holds nothing yet.
        events: how many shall be stored.
    """
    batches = max(1, events // UNIQUE)
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        # Nothing of it is lost if the machine stops now: it is filled again.
        connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
        connection.execute("CREATE TEMP TABLE kind (number INTEGER PRIMARY KEY, topic TEXT, source TEXT)")
        connection.executemany("INSERT INTO temp.kind VALUES (?, ?, ?)", [(n, *kind) for n, kind in enumerate(_KINDS)])
        indexes = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'events_event' AND type = 'index' AND sql NOT NULL"
        ).fetchall()
        connection.execute("BEGIN")
        for name, _ in indexes:
            connection.execute(f'DROP INDEX "{name}"')
        connection.execute(
            _BATCHES, {"batches": batches, "step": DAYS * 86_400 / batches, "unique": UNIQUE, "repeated": REPEATED}
        )
        connection.execute(_EVENTS, {"unique": UNIQUE})
        connection.execute("COMMIT")
        for _, sql in indexes:
            connection.execute(sql)
        connection.executescript(_BOOKS)
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
