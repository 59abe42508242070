"""The engines of a test run: started when the first test asks for them."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.pipeline.engines import PostgreSQL, RabbitMQ, Redis


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    import tempfile

    # Not pytest's folder, into which only its owner may look.
    with tempfile.TemporaryDirectory(prefix="aggregator-postgresql-", ignore_cleanup_errors=True) as folder:
        server = PostgreSQL(Path(folder) / "server")
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def rabbitmq() -> Iterator[RabbitMQ]:
    with closing(RabbitMQ()) as broker:
        yield broker


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    with closing(Redis("--save", "")) as server:
        yield server
