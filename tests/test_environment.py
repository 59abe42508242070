"""Settings come from the environment; whatever is wrong with one is said at the start in one clear line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from aggregator_project.environment import Environment
from events import checks

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def environment() -> Environment:
    return Environment()


def given(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("X", value)


# --- Origins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["https://app.example.com", "http://localhost:3000", "http://[::1]:3000", "http://a:443", "https://a, http://b"],
)
def test_an_origin_is_as_a_browser_sends_it(
    value: str, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, value)
    assert environment.origins("X") == value.split(", ")
    assert environment.mistakes == []


@pytest.mark.parametrize(
    "value",
    ["*", "null", "app.example.com", "https://app.example.com/", "https://app.example.com/x", "https://App.example.com",
     "https://a:443", "http://a:80", "ftp://a", "https://user@a", "https://a?b", "https://", "https://a https://b"],
)  # fmt: skip
def test_an_origin_that_no_browser_sends_is_one_line(
    value: str, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, f"https://fine.example.com,{value}")
    assert environment.origins("X") == []
    [line] = environment.mistakes
    assert line.startswith(f"X is {value!r}; it must be a list of origins")
    assert "\n" not in line


# --- One variable -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["plain", " spaced ", "$dollar", "é"])
def test_a_text_is_taken_as_it_stands(value: str, environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, value)
    assert environment.text("X", "default") == value


@pytest.mark.parametrize("value", [None, ""])
def test_unset_and_empty_are_the_default(
    value: str | None, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("X", raising=False)
    if value is not None:
        given(monkeypatch, value)
    assert environment.text("X", "default") == "default"
    assert environment.whole("X", 7) == 7
    assert environment.flag("X", True) is True
    assert environment.choice("X", "b", ["a", "b"]) == "b"
    assert environment.words("X", ["a"]) == ["a"]
    assert environment.url("X", "redis://a", ["redis"]) == "redis://a"
    assert environment.database("X", {"NAME": "/a"}, ["sqlite"]) == {"NAME": "/a"}
    assert environment.mistakes == []


@pytest.mark.parametrize(
    ("value", "meant"),
    [("true", True), ("Yes", True), ("ON", True), ("1", True), ("false", False), ("No", False), ("0", False)],
)
def test_a_flag_is_a_yes_or_a_no(
    value: str, meant: bool, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, value)
    assert environment.flag("X", not meant) is meant


@pytest.mark.parametrize("number", [1, 5, 10])
def test_a_whole_number_may_be_at_its_bounds(
    number: int, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, str(number))
    assert environment.whole("X", 3, minimum=1, maximum=10) == number
    assert environment.mistakes == []


def test_a_choice_is_made_in_any_case(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, "full")
    assert environment.choice("X", "NORMAL", ["FULL", "NORMAL"]) == "FULL"


def test_words_stand_between_commas(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, "a, b,,c ")
    assert environment.words("X") == ["a", "b", "c"]


@pytest.mark.parametrize("value", ["maybe", "2", "truee"])
def test_a_flag_that_is_neither_is_a_mistake(
    value: str, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, value)
    assert environment.flag("X", True) is True
    assert environment.mistakes == [f"X is {value!r}; it must be true or false"]


@pytest.mark.parametrize("value", ["0", "11", "-1", "1.5", "ten", "1e1", "0x1"])
def test_a_number_that_is_none_or_out_of_bounds_is_a_mistake(
    value: str, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, value)
    assert environment.whole("X", 3, minimum=1, maximum=10) == 3
    assert environment.mistakes == [f"X is {value!r}; it must be a whole number from 1 to 10"]


def test_a_choice_that_is_not_offered_is_a_mistake(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, "loud")
    assert environment.choice("X", "a", ["a", "b"]) == "a"
    assert environment.mistakes == ["X is 'loud'; it must be one of a, b"]


@pytest.mark.parametrize("value", ["mysql://u:secret@h/x", "secret", "redis//secret", "redis://[secret"])
def test_a_url_that_cannot_be_meant_is_a_mistake(
    value: str, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, value)
    assert environment.url("X", "redis://a", ["redis"]) == "redis://a"
    [mistake] = environment.mistakes
    assert mistake.startswith("X is ")
    assert "must be a URL that starts with redis://" in mistake


@pytest.mark.parametrize(
    "value",
    [
        "postgres://h:port/x",
        "postgres://[::1/x",
        "oracle://h/x",
        # Of these only a part would be taken for the path.
        "sqlite:////a#1",
        "sqlite:////a?1",
        "sqlite://a/b",
        "sqlite://",
        "sqlite://:memory:",
        "postgres://u:pass#word@h/x",
    ],
)
def test_a_database_that_cannot_be_read_is_a_mistake(
    value: str, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, value)
    assert environment.database("X", {"NAME": "/a"}, ["sqlite", "postgres"]) == {"NAME": "/a"}
    [mistake] = environment.mistakes
    assert mistake.startswith("X is ")


@pytest.mark.parametrize("value", ["mysql://user:secret@h/x", "postgres://user:secret@h:port/x"])
def test_a_password_is_not_repeated(value: str, environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, value)
    environment.database("X", {}, ["sqlite", "postgres"])
    assert "secret" not in environment.mistakes[0]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("sqlite:////a/b.sqlite3", "/a/b.sqlite3"),
        ("sqlite:////a%231/b%3F", "/a#1/b?"),
        ("sqlite:////a+b", "/a+b"),
        ("sqlite:////a%2541", "/a%41"),
        ("sqlite:////%C3%BC;,", "/ü;,"),
        ("sqlite:///a b", "a b"),
    ],
)
def test_the_path_of_a_sqlite_url_is_unquoted(
    value: str, path: str, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, value)
    assert environment.database("X", {}, ["sqlite"])["NAME"] == path
    assert environment.mistakes == []


# --- All of them ------------------------------------------------------------------------------------------------------

WRONG = {
    "DATABASE_URL": "mysql://h/x",
    "SQLITE_SYNCHRONOUS": "MAYBE",
    "SQLITE_BUSY_SECONDS": "0",
    "CELERY_BROKER_URL": "http://h",
    "CACHE_URL": "memcached://h",
    "PORT": "80x",
    "FLOWER_PORT": "65536",
    "WEB_PROCESSES": "0",
    "WEB_THREADS": "-1",
    "KEEPALIVE_SECONDS": "0",
    "WORKER_CONCURRENCY": "two",
    "PUBLISH_MAX_EVENTS": "0",
    "PUBLISH_MAX_BYTES": "10M",
    "INBOX_MAX_EVENTS": "-1",
    "INBOX_MAX_ATTEMPTS": "0",
    "DUPLICATE_LOG_DAYS": "week",
    "LOG_FORMAT": "xml",
    "LOG_LEVEL": "loud",
    "DEBUG": "maybe",
}


def start(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Starts a part of the service in an environment that has nothing but these variables."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environ = kept | {"DATA_DIR": str(folder)} | variables
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)


def test_the_web_part_says_every_mistake_in_a_line_and_does_not_start(tmp_path: Path) -> None:
    ended = start(tmp_path, "-c", "import aggregator_project.wsgi", **WRONG)
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(WRONG)
    assert all(re.match(r"\w+ is '[^']+'; it must be \S.+", line) for line in lines)


def test_the_web_part_starts_with_the_defaults(tmp_path: Path) -> None:
    ended = start(tmp_path, "-c", "import aggregator_project.wsgi")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_commands_say_a_mistake_too(tmp_path: Path) -> None:
    ended = start(tmp_path, "manage.py", "migrate", PORT="80x")
    assert ended.returncode != 0
    assert "PORT is '80x'; it must be a whole number from 1 to 65535" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_worker_says_a_mistake_too(tmp_path: Path) -> None:
    ended = start(tmp_path, "-m", "celery", "-A", "aggregator_project", "worker", PORT="80x")
    assert ended.returncode != 0
    assert "PORT is '80x'; it must be a whole number from 1 to 65535" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("below", ["", "sub/folder"])
def test_a_data_folder_that_cannot_be_is_said_in_a_line(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / below
    ended = start(folder, "-c", "import aggregator_project.wsgi")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"DATA_DIR {folder} cannot be made: ")


def test_a_data_folder_that_may_not_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path)
    monkeypatch.setattr(checks.os, "access", lambda *_: False)
    [error] = checks.check_data_folder()
    assert f"DATA_DIR {tmp_path} cannot be written" in error.msg


@pytest.mark.parametrize("name", ["run", "run/up.lock", "secret-key", "aggregator.sqlite3-wal", "broker"])
def test_what_another_user_left_in_it_is_an_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = tmp_path / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.touch()
    # What is not the service's is nobody's business.
    (tmp_path / "lost+found").touch()
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path)
    monkeypatch.setattr(checks.os, "access", lambda path, _: path not in (foreign, tmp_path / "lost+found"))
    [error] = checks.check_data_folder()
    assert error.msg == f"{foreign} in DATA_DIR cannot be written by user {os.getuid()}"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write whatever the mode says")
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_data_folder_that_may_not_be_written_is_said_in_a_line(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(mode)
    ended = start(folder, "-c", "import aggregator_project.wsgi")
    folder.chmod(0o700)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"DATA_DIR {folder} cannot be written by user {os.getuid()}")


def readable_by_others(folder: Path) -> list[str]:
    return [path.name for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077]


def test_what_is_written_is_for_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    usual = os.umask(0o022)
    try:
        for command in (["prepare"], ["backup", str(folder / "copy")]):
            ended = start(folder, "manage.py", *command)
            assert ended.returncode == 0, ended.stderr
    finally:
        os.umask(usual)
    assert (folder / "copy").exists()
    assert readable_by_others(folder) == []


def test_an_installation_that_others_may_read_is_closed_at_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    assert start(folder, "manage.py", "prepare").returncode == 0
    (folder / "lost+found").mkdir(mode=0o755)
    (folder / "lost+found").chmod(0o755)
    for path in (folder / "aggregator.sqlite3", folder / "secret-key"):
        path.chmod(0o644)
    (folder / "run").chmod(0o755)
    assert start(folder, "manage.py", "prepare").returncode == 0
    assert readable_by_others(folder) == ["lost+found"]


def test_a_data_folder_that_is_missing_is_made_for_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path / "a" / "b")
    assert checks.check_data_folder() == []
    assert not (tmp_path / "a").exists()
    checks.exit_on_errors()
    assert (tmp_path / "a" / "b").is_dir()


#: Names of folders that would mean something else in a URL, a shell or a configuration file.
ODD_NAMES = [
    "#1", "?1", "%41%(here)s", "a b+&c=d", " ;x #y,z", "\"'`$HOME`\\", "ü€😀@:[~{}",
    b"\xff".decode(errors="surrogateescape"),
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_data_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / f"a{name}b"
    folder.mkdir()
    show = (
        "import os, sys, django, kombu, redis; django.setup(); from django.conf import settings;"
        "from django.core.cache import cache; from urllib.parse import urlsplit; from django.db import connection;"
        "connection.cursor().execute('CREATE TABLE t (x)');"
        "socket = settings.EMBEDDED_BROKER_SOCKET;"
        "channel = kombu.Connection(settings.CELERY_BROKER_URL).channel;"
        "path = kombu.utils.url.url_to_parts(kombu.Connection(settings.CELERY_BROKER_URL).hostname).path;"
        "assert '/' + path == socket, path;"
        # As Flower reads it.
        "assert urlsplit(settings.CELERY_BROKER_URL).path == socket;"
        "assert cache._cache.get_client().connection_pool.connection_kwargs['path'] == socket;"
        "assert len(os.fsencode(socket)) <= 100;"
        "print(socket)"
    )
    done = start(folder, "-c", show, DJANGO_SETTINGS_MODULE="aggregator_project.settings")
    assert done.returncode == 0, done.stderr
    assert (folder / "aggregator.sqlite3").exists()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_folders_that_differ_have_databases_and_brokers_of_their_own(tmp_path: Path) -> None:
    show = "from aggregator_project import settings as s; print(s.DATABASES['default']['NAME'], s.CELERY_BROKER_URL)"
    folders = [tmp_path / f"a{name}" for name in ("", "#1", "#2", "?1", "%41", "A")]
    folders += [tmp_path / f"{'deep/' * 20}{name}" for name in ("x", "y")]
    assert len({start(folder, "-c", show).stdout for folder in folders}) == len(folders)


def test_a_data_folder_with_a_line_break_is_a_mistake(tmp_path: Path) -> None:
    ended = start(tmp_path / "a\nb", "-c", "import aggregator_project.wsgi")
    assert ended.returncode == 2
    assert ended.stderr == "DATA_DIR has a line break in it; name a folder without one\n"


def test_the_secret_key_is_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    show = "from aggregator_project import settings; print(settings.SECRET_KEY)"
    keys = {start(tmp_path, "-c", show).stdout for _ in range(2)}
    assert len(keys) == 1
    assert (tmp_path / "secret-key").stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["secret-key"]


def test_the_readme_lists_exactly_the_variables_that_are_read() -> None:
    chapter = (ROOT / "README.md").read_text().split("\n## Settings\n")[1].split("\n## ")[0]
    rows = [line for line in chapter.splitlines() if line.startswith("|")]
    listed = [name for row in rows[2:] for name in re.findall(r"`([A-Z_]+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(set(settings.ENVIRONMENT.names))
