"""`manage.py transfer --to DATABASE_URL`: moves an installation from SQLite to PostgreSQL."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError, connection, connections

from aggregator_project.environment import Environment
from events import payload_search
from events.audit import audit
from events.management.base import BaseCommand, one_line
from events.payload_search import PREFIX
from events.stats import Books, books
from events.transfer import Changed, NotOurs, transfer

#: Name of the connection to the target.
TARGET = "target"


class Command(BaseCommand):
    help = (
        "Copy everything from SQLite to PostgreSQL, and compare the counters of both. Stop the service first. "
        "After an interruption, run it again: it continues. It only reads the source."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--to", required=True, metavar="DATABASE_URL", help="postgres://user:password@host:5432/name"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if connection.vendor != "sqlite":
            raise CommandError("The source is DATABASE_URL, and it must be SQLite: leave it unset, set DATA_DIR.")
        environment = Environment({"--to": options["to"]})
        target = environment.database("--to", {}, ["postgres", "postgresql"])
        if environment.mistakes:
            raise CommandError(environment.mistakes[0])
        connections.settings[TARGET] = connections.configure_settings({"default": target})["default"]
        with stopped():
            try:
                self._transfer()
            except NotOurs as error:
                raise CommandError(
                    f"The target's table {error} holds rows that the source does not: they are of another "
                    "installation, or the source was written to since an earlier run copied them. Empty the target, or "
                    "name another database."
                ) from None
            except Changed:
                raise CommandError(
                    "The source was written to meanwhile. Stop the service, empty the target, and run it again."
                ) from None
            except DatabaseError as error:
                raise CommandError(
                    f"{one_line(error)} Run it again when that is mended: it goes on where it was."
                ) from None

    def _transfer(self) -> None:
        call_command("migrate", database=TARGET, verbosity=0, interactive=False)
        for progress in transfer("default", TARGET):
            self.stdout.write(f"{progress.table}: {progress.rows:,} of {progress.of:,}")
        before = self._proven("source")
        with default_is(TARGET):
            after = self._proven("target")
        if before != after:
            raise CommandError("The books differ. Empty the target and run it again.")
        self.stdout.write(
            f"The books are the same on both sides: received {after.received:,}, unique {after.unique:,}, "
            f"duplicates {after.duplicates:,}, pending {after.pending:,}. Start the service with the new DATABASE_URL."
        )
        if paths := payload_search.indexed_paths():
            commands = ", ".join(f"manage.py index {PREFIX}{'.'.join(path)}" for path in paths)
            self.stdout.write(f"Indexes for searching by payload are made anew, with the new DATABASE_URL: {commands}")

    def _proven(self, side: str) -> Books:
        failed = [finding.claim for finding in audit() if not finding.holds]
        if failed:
            raise CommandError(f"The books of the {side} are wrong: {'; '.join(failed)}. `manage.py audit` shows more.")
        return books()


@contextmanager
def stopped() -> Iterator[None]:
    """Keeps `manage.py up` from running on the source meanwhile.

    Raises:
        CommandError: it runs. Parts that were started in another way are for the operator to stop.
    """
    folder = settings.DATA_DIR / "run"
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folder / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise CommandError(
            f"The service runs on {settings.DATA_DIR}. Stop it first: what it stores now would be missed."
        ) from None
    finally:
        os.close(lock)


@contextmanager
def default_is(using: str) -> Iterator[None]:
    """Lets what asks the default database ask another one."""
    usual = connections["default"]
    connections["default"] = connections[using]
    try:
        yield
    finally:
        connections["default"] = usual
