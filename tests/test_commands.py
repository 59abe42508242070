"""What all commands share: a --help that lists their own options, and mistakes that are said first, in one line."""

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command, get_commands, load_command_class
from django.db import OperationalError, connection

from events.management.base import DJANGOS_OPTIONS, BaseCommand

OURS = sorted(name for name, app in get_commands().items() if app == "events")


def run(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(settings.BASE_DIR / "manage.py"), *arguments],
        env={"PATH": "", "DATA_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", OURS)
def test_help_lists_the_commands_own_options(name: str) -> None:
    command = load_command_class("events", name)
    assert isinstance(command, BaseCommand)
    shown = command.create_parser("manage.py", name).format_help()
    assert command.help.split()[0] in shown
    assert {word.strip("[],") for word in shown.split()}.isdisjoint(DJANGOS_OPTIONS)
    # They work all the same.
    assert command.create_parser("manage.py", name).get_default("verbosity") == 1


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["publish", "--count", "many"], 'argument --count: "many" is not a whole number'),
        (["apikey", "create", "shop"], "the following arguments are required: scopes"),
        (["audit", "--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_a_mistake_is_one_line_that_begins_with_the_cause(arguments: list[str], cause: str, tmp_path: Path) -> None:
    (tmp_path / "aggregator.sqlite3").touch()
    ended = run(*arguments, folder=tmp_path)
    assert ended.returncode == 2
    [line] = [line for line in ended.stderr.splitlines() if not line.startswith("Acting on ")]
    assert line.startswith(cause)
    assert "--help" in line


@pytest.mark.parametrize(
    "arguments",
    [
        *(["apikey", "list"], ["audit"], ["discard", "--all"], ["prune"], ["prune", "--dry-run"], ["replay", "--all"]),
        *(["erase", "--topic", "t", "--event-id", "1"], ["index"]),
    ],
    ids=" ".join,
)
def test_an_error_of_the_database_is_one_line(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OperationalError("connection failed: refused\n\tIs the server running?\n")

    monkeypatch.setattr(connection, "ensure_connection", refuse)
    monkeypatch.setattr(connection, "cursor", refuse)
    with pytest.raises(CommandError) as raised:
        call_command(*arguments)
    assert "refused Is the server running?" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_called_from_code_a_mistake_is_an_exception() -> None:
    with pytest.raises(CommandError, match="not a whole number"):
        call_command("publish", "--count", "many")
