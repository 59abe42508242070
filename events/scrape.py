"""What /metrics says: the books and the state of the parts as they are, and what all processes counted (metrics.py)."""

import os
from collections.abc import Iterator

from django.db import DatabaseError, InterfaceError, connection
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from events import health, metrics, state, stats


def scrape() -> bytes:
    """Prometheus' text format, version 0.0.4. Never raises: of a database that is away it says just that."""
    registry = CollectorRegistry()
    registry.register(_Books())
    registry.register(_Parts())
    registry.register(_WriteAheadLog())
    registry.register(_Counted())
    return generate_latest(registry)


class _Books:
    """Read from the database, so exact, and the same whichever process is asked."""

    def collect(self) -> Iterator[Metric]:
        try:
            books = stats.books()
        except (DatabaseError, InterfaceError):
            return
        yield CounterMetricFamily("aggregator_events_published", "Events accepted.", books.received)
        yield CounterMetricFamily("aggregator_events_unique", "Events stored.", books.unique)
        yield CounterMetricFamily(
            "aggregator_events_duplicate", "Events dropped: their key was stored already.", books.duplicates
        )
        yield GaugeMetricFamily("aggregator_events_pending", "Events on disk that wait to be stored.", books.pending)
        yield GaugeMetricFamily("aggregator_events_failed", "Events of dead letters.", books.failed)
        yield GaugeMetricFamily("aggregator_events_discarded", "Events of dead letters given up.", books.discarded)
        yield GaugeMetricFamily("aggregator_topics", "Topics there are.", len(books.topics))
        yield GaugeMetricFamily(
            "aggregator_oldest_pending_seconds",
            "How long the oldest pending batch has waited.",
            state.oldest_pending_seconds() or 0.0,
        )


class _Parts:
    """The report of /health/ready."""

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("aggregator_up", "Whether a part of the service is well.", labels=["part"])
        for part in health.report().parts:
            up.add_metric([part.name], part.word == "ok")
        yield up


class _WriteAheadLog:
    """SQLite's: it grows where a reader or a backup holds back its checkpoints. PostgreSQL's is not ours to watch."""

    def collect(self) -> Iterator[Metric]:
        if connection.vendor != "sqlite":
            return
        try:
            size = os.stat(f"{connection.settings_dict['NAME']}-wal").st_size
        except OSError:
            size = 0
        yield GaugeMetricFamily("aggregator_sqlite_wal_bytes", "Size of SQLite's write-ahead log.", size)


class _Counted:
    """The files of all processes, those of the dead among them. Other programs that count there are not shown."""

    def collect(self) -> Iterator[Metric]:
        files = sorted(metrics.FOLDER.glob("*.db"))
        try:
            merged = MultiProcessCollector.merge(map(str, files))
        except Exception:
            # One of them is broken (metrics.readable says which); the others are not.
            merged = MultiProcessCollector.merge([str(file) for file in files if metrics.readable(file)])
        yield from (metric for metric in merged if metric.name.startswith("aggregator_"))
