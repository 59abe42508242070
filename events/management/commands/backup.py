"""`manage.py backup FILE`: a copy of the SQLite database, made while the service runs."""

from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError

from events.backup import NotCopied, back_up
from events.management.base import BaseCommand, one_line


class Command(BaseCommand):
    help = "Copy the SQLite database to a new file, as one snapshot, and check the copy. The service may run."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="the new file")

    def handle(self, *args: Any, file: Path, **options: Any) -> None:
        try:
            size = back_up(file)
        except (NotCopied, DatabaseError) as error:
            raise CommandError(one_line(error)) from None
        self.stdout.write(f"{file}: {size / 1e6:,.1f} MB, complete and checked.")
