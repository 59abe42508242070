"""Whatever dies, and whenever: what was answered 202 is stored once. The long version is `python -m tests.faults`."""

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from tests.faults.kinds import REFUSALS, Faults
from tests.faults.publishers import Publishers, prove
from tests.faults.service import Service, runs, until

#: Longer than the worker waits for an answer of its broker (socket_timeout in settings.py).
HANGS_SECONDS = 7


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("kills"), NO_FLOWER="true") as started:
        yield started
        processes = started.processes()
    assert not any(map(runs, processes))


def proven(service: Service, publishers: Publishers) -> None:
    publishers.stop()
    assert publishers.errors == []
    until(lambda: service.pending() == 0, "nothing is pending")
    assert prove(service, publishers.published).wrong == []
    audit = service.audit()
    assert audit.returncode == 0, audit.stdout


def test_no_death_and_no_loss_of_the_brokers_loses_or_doubles_an_event(service: Service) -> None:
    seed = random.randrange(10**6)
    faults = Faults(service, random.Random(seed))
    long = {"broker hangs", "broker gone", "broker refuses writes", "database locked", "worker frozen", "deadly batch"}
    short = [name for name in faults.kinds if name not in long]
    faults.chance.shuffle(short)
    with Publishers(service.url, seed=seed, count=3) as publishers:
        for kind in short:
            faults.kinds[kind]()
            assert service.recovery() is not None, f"{kind} is not recovered from (seed {seed})"
        proven(service, publishers)


@pytest.mark.slow
def test_a_worker_hears_again_when_a_broker_that_hung_answers(service: Service) -> None:
    with Publishers(service.url, seed=1, count=2) as publishers:
        before = publishers.accepted
        Faults(service, random.Random(1), away_seconds=HANGS_SECONDS).broker_hangs()
        assert publishers.accepted > before, "publishes go on being accepted meanwhile"
        assert service.recovery() is not None
        proven(service, publishers)


def test_a_worker_hears_again_when_a_redis_that_refused_writes_takes_them(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with Service(tmp_path_factory.mktemp("refusing"), NO_FLOWER="true") as service:
        faults = Faults(service, random.Random(1))
        with Publishers(service.url, seed=1, count=2) as publishers:
            for reason in REFUSALS:
                before = publishers.accepted
                faults.broker_refuses_writes(reason)
                assert publishers.accepted > before, f"publishes go on being accepted meanwhile ({reason})"
                assert service.recovery() is not None, reason
            proven(service, publishers)


def test_while_a_frozen_worker_holds_the_lock_publishes_get_a_503_and_health_is_answered(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with Service(tmp_path_factory.mktemp("frozen"), NO_FLOWER="true", SQLITE_BUSY_SECONDS="1") as service:
        event = {"topic": "t", "event_id": "1", "source": "s"}
        faults = Faults(service, random.Random(1), away_seconds=0)
        [pool] = until(lambda: service.pool_and_beat()[0], "there is a process to freeze")
        with Publishers(service.url, seed=1, count=3) as publishers:
            until(lambda: faults.stopped_with_the_lock(pool), "it holds the lock")
            try:
                answers = [httpx.post(f"{service.url}/publish", json=event, timeout=10) for _ in range(20)]
                health = httpx.get(f"{service.url}/health", timeout=10)
            finally:
                pool.resume()
            assert {answer.status_code for answer in answers} == {503}
            assert int(answers[0].headers["Retry-After"]) > 0
            assert health.status_code == 200
            assert service.recovery() is not None
            proven(service, publishers)
        assert service.rows("SELECT count(*) FROM events_batch WHERE attempts > 0") == [(0,)]


@pytest.mark.slow
def test_a_batch_that_kills_the_worker_becomes_a_dead_letter_and_nothing_else_does(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with Service(tmp_path_factory.mktemp("deadly"), NO_FLOWER="true", INBOX_MAX_ATTEMPTS="2") as service:
        faults = Faults(service, random.Random(1))
        with Publishers(service.url, seed=1, count=2) as publishers:
            faults.deadly_batch()
            assert faults.kills["deadly batch"] >= 2
            assert service.recovery() is not None
            proven(service, publishers)


def test_a_beat_that_dies_comes_back_with_its_worker(service: Service) -> None:
    worker = until(lambda: service.part("worker"), "there is a worker")
    [beat] = until(lambda: service.pool_and_beat()[1], "there is a beat")
    beat.kill()
    until(lambda: not runs(worker), "the worker ends")
    until(lambda: service.pool_and_beat()[1], "there is a beat again")
    assert service.recovery() is not None


def test_while_a_stranger_holds_the_lock_publishes_get_a_503_and_nothing_is_counted_as_an_attempt(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with Service(tmp_path_factory.mktemp("locked"), NO_FLOWER="true", SQLITE_BUSY_SECONDS="1") as service:
        event = {"topic": "t", "event_id": "1", "source": "s"}
        with closing(sqlite3.connect(service.data / "aggregator.sqlite3", timeout=30)) as stranger:
            stranger.execute("BEGIN IMMEDIATE")
            answers = [httpx.post(f"{service.url}/publish", json=event, timeout=20) for _ in range(3)]
            stranger.rollback()
        for answer in answers:
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert "nothing was accepted" in answer.json()["detail"]
        assert service.recovery() is not None
        assert service.rows("SELECT count(*) FROM events_batch WHERE attempts > 0 OR status != 'processed'") == [(0,)]
        assert service.rows("SELECT count(*) FROM events_event WHERE topic = 't'") == [(0,)]
