"""The same service on every pair of engines, several of each part at once: nothing is lost, nothing is stored twice."""

import signal
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.faults.publishers import Publishers
from tests.faults.service import until
from tests.pipeline.cluster import Cluster
from tests.pipeline.engines import PostgreSQL, RabbitMQ, Redis, Sentinels

# One after the other: each runs a dozen processes.
pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.timeout(180)]

#: Seconds of load that a fault is in the middle of.
LOAD_SECONDS = 1.5


@pytest.fixture(
    params=[
        # On these, tests/faults does worse to it.
        pytest.param("sqlite and valkey", marks=pytest.mark.slow),
        "postgresql and rabbitmq",
        pytest.param("postgresql and redis", marks=pytest.mark.slow),
    ]
)
def engines(request: pytest.FixtureRequest) -> dict[str, str]:
    """The two URLs."""
    if request.param == "sqlite and valkey":
        return {}
    server: PostgreSQL = request.getfixturevalue("postgresql")
    broker: Any = request.getfixturevalue("rabbitmq" if "rabbitmq" in request.param else "own_redis")
    return {"DATABASE_URL": server.database(), "CELERY_BROKER_URL": broker.url, "WORKER_CONCURRENCY": "2"}


def under_load(cluster: Cluster, *faults: Callable[[], Any], urls: tuple[str, ...] = ()) -> None:
    """Publishes to every web host while the faults happen one after the other, then proves that all is well."""
    running = [Publishers(url, seed=seed, count=2) for seed, url in enumerate((cluster.url, *urls))]
    for publishers in running:
        publishers.__enter__()
    try:
        for fault in (*faults, lambda: None):
            time.sleep(LOAD_SECONDS)
            fault()
    finally:
        for publishers in running:
            publishers.stop()
    cluster.prove_all_is_well(*running)


def test_many_web_processes_and_workers_store_each_event_once(tmp_path: Path, engines: dict[str, str]) -> None:
    with Cluster(tmp_path, **engines) as cluster:
        if not engines:
            # SQLite is for one machine.
            under_load(cluster)
            return
        second = cluster.worker()
        under_load(cluster, lambda: second.signal(signal.SIGKILL), urls=(cluster.web(),))


@pytest.mark.slow
def test_a_single_event_waits_for_no_sweep(tmp_path: Path, engines: dict[str, str]) -> None:
    """Each process may have a doorbell of its own. Were rings lost, half of the events would wait a second."""
    with Cluster(tmp_path, **engines) as cluster:
        waits = []
        for _ in range(12):
            waits.append(cluster.recovery() or 60.0)
            time.sleep(0.03)
        assert statistics.median(waits) < 0.7, waits


def in_a_transaction(server: PostgreSQL, name: str) -> list[int]:
    """Server processes that hold a chunk of the worker of this name."""
    found = server.rows(
        f"SELECT pid FROM pg_stat_activity WHERE application_name = 'aggregator-{name}' AND xact_start IS NOT NULL"
    )
    return [pid for (pid,) in found]


@pytest.mark.slow
def test_a_worker_host_that_is_cut_off_in_the_middle_of_a_chunk(
    tmp_path: Path, postgresql: PostgreSQL, own_redis: Redis
) -> None:
    # The server gives up a transaction in which nothing happens.
    url = f"{postgresql.database()}?options=-c%20idle_in_transaction_session_timeout%3D1s"
    with Cluster(tmp_path, DATABASE_URL=url, CELERY_BROKER_URL=own_redis.url) as cluster:
        lost = cluster.worker("lost")

        def cut_off() -> None:
            def caught() -> bool:
                lost.signal(signal.SIGSTOP)
                if in_a_transaction(postgresql, "lost"):
                    return True
                lost.signal(signal.SIGCONT)
                return False

            until(caught, "the worker is in the middle of a chunk")

        def others_go_on() -> None:
            until(lambda: not in_a_transaction(postgresql, "lost"), "the server has given it up", seconds=15)
            assert cluster.recovery(seconds=15) is not None

        under_load(cluster, cut_off, others_go_on, lambda: lost.signal(signal.SIGCONT))


@pytest.mark.slow
def test_connections_to_postgresql_that_are_cut_and_a_restart_of_it(
    tmp_path: Path, postgresql: PostgreSQL, own_redis: Redis
) -> None:
    url = postgresql.database()

    def cut() -> None:
        name = url.rpartition("/")[2]
        for _ in range(5):
            postgresql.rows(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            time.sleep(0.1)

    def restart() -> None:
        postgresql.stop()
        time.sleep(0.3)
        postgresql.start()

    with Cluster(tmp_path, DATABASE_URL=url, CELERY_BROKER_URL=own_redis.url, WORKER_CONCURRENCY="2") as cluster:
        cluster.worker()
        under_load(cluster, cut, restart)


@pytest.mark.slow
def test_connections_to_rabbitmq_that_are_cut(tmp_path: Path, postgresql: PostgreSQL, rabbitmq: RabbitMQ) -> None:
    with Cluster(tmp_path, DATABASE_URL=postgresql.database(), CELERY_BROKER_URL=rabbitmq.url) as cluster:
        cluster.worker()
        under_load(cluster, rabbitmq.cut, rabbitmq.cut)
        assert rabbitmq.queues()["celery"] == "quorum"
        assert not [name for name in rabbitmq.queues() if "delayed" in name]


@pytest.mark.slow
def test_redis_that_fails_over_to_another_server(tmp_path: Path) -> None:
    with (
        closing(Sentinels(tmp_path)) as sentinels,
        Cluster(tmp_path / "up", CELERY_BROKER_URL=sentinels.url, SENTINEL_MASTER="events") as cluster,
    ):
        under_load(cluster, sentinels.fail_over)
        waited = cluster.recovery()
        assert waited is not None
        assert waited < 10
