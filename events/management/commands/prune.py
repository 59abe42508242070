"""`manage.py prune`: retention, now. Beat starts the same once a day."""

import time
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError

from events.management.base import BaseCommand, one_line
from events.retention import prune, would_go

#: Seconds between two lines that say how far it is.
PROGRESS_SECONDS = 5


class Command(BaseCommand):
    help = "Delete what is older than the *_DAYS settings allow, in small steps. The service may run."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only say how many rows of each kind would go")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["dry_run"]:
            self._say_what_would_go()
        else:
            self._prune()

    def _say_what_would_go(self) -> None:
        counts = [count for count in would_go() if count.rows]
        for count in counts:
            noun, _, verb = count.kind.rpartition(" ")
            self.stdout.write(f"{'' if count.all else 'at least '}{count.rows:,} {noun} would be {verb}")
        if not counts:
            self.stdout.write("Nothing is old enough.")

    def _prune(self) -> None:
        gone: dict[str, int] = {}
        said_at = time.monotonic()
        try:
            for taken in prune():
                gone[taken.kind] = gone.get(taken.kind, 0) + taken.rows
                if time.monotonic() - said_at >= PROGRESS_SECONDS:
                    said_at = time.monotonic()
                    self.stdout.write(f"… {gone[taken.kind]:,} {taken.kind}")
                    self.stdout.flush()
        except DatabaseError as error:
            raise CommandError(f"Stopped by the database: {one_line(error)}. What is gone is in the books.") from None
        for kind, rows in gone.items():
            self.stdout.write(f"{rows:,} {kind}")
        if not gone:
            self.stdout.write("Nothing is old enough.")
