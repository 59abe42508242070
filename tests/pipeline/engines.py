"""Databases and brokers that belong to a test: started for it on free ports, or a corner of one that runs here."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest
import redis

from tests.faults.service import free_ports, tethered, until

#: Seconds that a command which starts or stops an engine may take.
PATIENCE = 60


def program(name: str) -> str:
    """Where a program is; the test is skipped where it is not."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ["PATH"]]))
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


class PostgreSQL:
    """A cluster of our own, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._programs = [program("initdb"), program("pg_ctl")]
        self._folder = folder
        [self.port] = free_ports(1)
        # PostgreSQL refuses to run as root.
        self._as_owner: list[str] = []
        if os.getuid() == 0:
            self._as_owner = [program("runuser"), "-u", "postgres", "--"]
            folder.mkdir(mode=0o755, parents=True)
            shutil.chown(folder, "postgres")
            for parent in (folder, *folder.parents):
                if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                    parent.chmod(parent.stat().st_mode | 0o011)
        self._run(self._programs[0], "-A", "trust", "-U", "test", "--no-sync", "-D", f"{folder}/cluster")
        options = "\n".join(
            [
                f"port = {self.port}",
                "listen_addresses = '127.0.0.1'",
                "unix_socket_directories = ''",
                # What a test ends is processes, never the power.
                "fsync = off",
            ]
        )
        self._run("sh", "-c", f"cat >> {folder}/cluster/postgresql.conf <<'END'\n{options}\nEND")
        self.start()

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            [*self._as_owner, *command],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"{command[0]} does not work here: {done.stderr.decode()[-200:]}")

    def start(self) -> None:
        self._run(
            self._programs[1], "start", "-w", "-D", f"{self._folder}/cluster", "-l", f"{self._folder}/cluster/log"
        )

    def stop(self) -> None:
        """Ends it as an administrator does who cannot wait: connections are cut, transactions rolled back."""
        self._run(self._programs[1], "stop", "-w", "-m", "fast", "-D", f"{self._folder}/cluster")

    def database(self) -> str:
        """The URL of a new database."""
        name = f"t{uuid4().hex[:12]}"
        self.rows(f"CREATE DATABASE {name}")
        return f"postgres://test@127.0.0.1:{self.port}/{name}"

    def rows(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="test", dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(sql)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []


class RabbitMQ:
    """A virtual host of our own."""

    def __init__(self) -> None:
        self._program = program("rabbitmqctl")
        self._host = f"test-{uuid4().hex[:12]}"
        self.url = f"amqp://guest:guest@127.0.0.1:5672/{self._host}"
        try:
            done = self._control("add_vhost", self._host)
        except subprocess.TimeoutExpired:
            pytest.skip("rabbitmqctl does not answer")
        if done.returncode:
            pytest.skip("RabbitMQ does not run here, or cannot be controlled")
        self._control("set_permissions", "-p", self._host, "guest", ".*", ".*", ".*")

    def _control(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([self._program, *words], capture_output=True, text=True, timeout=PATIENCE, check=False)

    def cut(self) -> None:
        """Closes every connection."""
        self._control("close_all_connections", "--vhost", self._host, "test")

    def queues(self) -> dict[str, str]:
        """The queues' types by their names."""
        listed = self._control("list_queues", "-q", "--no-table-headers", "-p", self._host, "name", "type").stdout
        return dict(line.split("\t") for line in listed.splitlines())

    def close(self) -> None:
        self._control("delete_vhost", self._host)


class Redis:
    """A server of our own."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        self.port = port or free_ports(1)[0]
        # A file of settings comes first.
        self._command = [program("redis-server"), *options, "--port", str(self.port)]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def close(self) -> None:
        self.stop()

    def start(self) -> None:
        self._process = subprocess.Popen(
            tethered(self._command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


class Sentinels:
    """Two servers with a password, and a sentinel that makes one the master when the other is gone."""

    PASSWORD = "s3cret:/@"

    def __init__(self, folder: Path) -> None:
        one, other, self.port = free_ports(3)
        common = ["--save", "", "--requirepass", self.PASSWORD, "--masterauth", self.PASSWORD]
        self.servers = {
            one: Redis(*common, port=one),
            other: Redis(*common, "--replicaof", "127.0.0.1", str(one), port=other),
        }
        configuration = folder / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\ndir {folder}\nprotected-mode no\n"
            f"sentinel monitor events 127.0.0.1 {one} 1\n"
            f"sentinel auth-pass events {self.PASSWORD}\n"
            "sentinel down-after-milliseconds events 500\nsentinel failover-timeout events 2000\n"
        )
        self.sentinel = Redis(str(configuration), "--sentinel", port=self.port)
        self._client = redis.Redis(port=self.port, socket_timeout=2)
        until(self._replicated, "the sentinel knows both servers")

    @property
    def url(self) -> str:
        return f"sentinel://:{quote(self.PASSWORD, safe='')}@127.0.0.1:{self.port}/0"

    def _replicated(self) -> bool:
        try:
            master = self._client.sentinel_master("events")
            return bool(int(master["num-slaves"])) and not master["is_sdown"]
        except redis.RedisError:
            return False

    def master(self) -> int:
        return int(self._client.sentinel_get_master_addr_by_name("events")[1])

    def fail_over(self) -> None:
        """Kills the master and waits until the other server is it."""
        before = self.master()
        self.servers[before].stop()
        until(lambda: self.master() != before, "the other server is the master")

    def close(self) -> None:
        for server in (self.sentinel, *self.servers.values()):
            server.stop()
