"""running.py: a command acts on the service that runs, says which one it is, and makes no folder and no database."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import get_commands

from aggregator_project import running
from aggregator_project.running import Service
from events.management.commands import demo

ROOT = settings.BASE_DIR


@pytest.fixture(autouse=True)
def _runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runtime").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))


@contextmanager
def runs(folder: Path, url: str = "http://127.0.0.1:9000", **variables: str) -> Iterator[Service]:
    """A service whose lock is held, as `up` holds it."""
    (folder / "run").mkdir(parents=True)
    service = Service(str(folder), url, variables=variables)
    with (folder / running.LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        running.announce(service)
        yield service


def manage(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    ours = {*settings.ENVIRONMENT.names, "DJANGO_SETTINGS_MODULE", "AGGREGATOR_URL"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [sys.executable, ROOT / "manage.py", *arguments], env=environment | variables, capture_output=True, text=True
    )


def test_a_service_is_found_as_long_as_it_runs(tmp_path: Path) -> None:
    with runs(tmp_path / "data", PORT="9000") as service:
        assert running.running_services() == [service]
    assert running.running_services() == []
    assert list((tmp_path / "runtime").rglob("*.json")) == []


def test_only_its_user_can_read_what_a_service_leaves(tmp_path: Path) -> None:
    with runs(tmp_path / "data"):
        [folder] = (tmp_path / "runtime").iterdir()
        [file] = folder.iterdir()
        assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_service_of_another_checkout_is_not_ours(tmp_path: Path) -> None:
    with runs(tmp_path / "data") as service:
        running.announce(Service(service.data_dir, service.url, base_dir="/elsewhere"))
        assert running.running_services() == []


def test_what_somebody_else_put_there_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with runs(tmp_path / "data"):
        [folder] = (tmp_path / "runtime").iterdir()
        (folder / "broken.json").write_text("{")
        assert len(running.running_services()) == 1
        monkeypatch.setattr(
            Path, "stat", lambda *_, **__: os.stat_result((0o40700, 0, 0, 2, os.getuid() + 1, 0, 0, 0, 0, 0))
        )
        assert running.running_services() == []


def test_a_command_acts_on_the_service_that_runs(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with runs(folder, DUPLICATE_LOG_DAYS="3") as service:
        assert manage("prepare", DATA_DIR=str(folder)).returncode == 0
        made = manage("apikey", "create", "the shop", "publish")
        assert (made.returncode, made.stderr.splitlines()[0]) == (
            0,
            f"Acting on the service at {service.url}, data in {folder}.",
        )
        assert "the shop" in manage("apikey", "list", DATA_DIR=str(folder)).stdout
        assert (
            manage("shell", "-v0", "-c", "from django.conf import settings as s; print(s.DUPLICATE_LOG_DAYS)").stdout
            == "3\n"
        )


def test_several_services_have_to_be_told_apart(tmp_path: Path) -> None:
    with runs(tmp_path / "a") as a, runs(tmp_path / "b", "http://127.0.0.1:9001"):
        ended = manage("audit")
        assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (1, "", 1)
        assert ended.stderr.startswith("Several services run: ")
        assert "DATA_DIR=… manage.py audit" in ended.stderr
        assert manage("prepare", DATA_DIR=a.data_dir).returncode == 0
        assert manage("audit", DATA_DIR=a.data_dir).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["apikey", "list"],
        ["apikey", "create", "a", "read"],
        ["audit"],
        ["replay", "--all"],
        ["discard", "--all"],
        ["erase", "--topic", "t", "--event-id", "1"],
        ["index", "payload.user_id"],
        ["showmigrations"],
        ["prune"],
        ["backup", "copy"],
        ["transfer", "--to", "postgres://nobody@127.0.0.1:1/x"],
        ["notify"],
        ["changepassword", "admin"],
    ],
)
def test_without_an_installation_a_command_says_so_and_makes_nothing(arguments: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"
    ended = manage(*arguments, DATA_DIR=str(folder))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"There is no installation in {folder}. Start one with `manage.py up`, or name the folder of another: "
        f"DATA_DIR=… manage.py {arguments[0]}\n"
    )
    assert not folder.exists()


@pytest.mark.parametrize(
    "arguments", [["check"], ["help"], ["makemigrations", "--check", "--dry-run"], ["apikey", "--help"]]
)
def test_a_command_that_only_looks_makes_no_folder(arguments: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"
    assert manage(*arguments, DATA_DIR=str(folder)).returncode == 0
    assert not folder.exists()


def test_no_command_of_ours_is_forgotten() -> None:
    ours = {name for name, app in get_commands().items() if app == "events"}
    assert ours - running.ACTING == running.NOT_ACTING


def test_a_demo_is_not_found_by_other_commands(tmp_path: Path) -> None:
    environment = demo.environment_for(tmp_path / "data", port=1, flower_port=2)
    assert environment["XDG_RUNTIME_DIR"] == str(tmp_path) != os.environ["XDG_RUNTIME_DIR"]


def test_publish_wants_to_know_which_of_several_services(tmp_path: Path) -> None:
    with runs(tmp_path / "a"), runs(tmp_path / "b", "http://127.0.0.1:9001"):
        ended = manage("publish", "--wait", "0.01")
        assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (1, "", 1)
        assert "manage.py publish --url" in ended.stderr
        assert "http://127.0.0.1:1" in manage("publish", "--wait", "0.01", "--url", "http://127.0.0.1:1").stdout


def test_publish_to_nothing_says_where_it_looked_and_how_to_name_another(tmp_path: Path) -> None:
    ended = manage("publish", "--wait", "0.01", AGGREGATOR_URL="http://127.0.0.1:1")
    assert ended.returncode == 1
    line = ended.stdout.splitlines()[-1]
    assert line.startswith("Cannot go on: http://127.0.0.1:1 is not healthy")
    assert line.endswith("--url names another address")


def test_publish_goes_to_the_service_that_runs(tmp_path: Path) -> None:
    with runs(tmp_path / "data", "http://127.0.0.1:1"):
        ended = manage("publish", "--wait", "0.01")
    assert "http://127.0.0.1:1" in ended.stdout
