"""`manage.py prune`: retention, now. Beat starts the same once a day."""

import time
from typing import Any

from django.core.management.base import CommandError
from django.db import DatabaseError

from events.management.base import BaseCommand
from events.retention import prune

#: Seconds between two lines that say how far it is.
PROGRESS_SECONDS = 5


class Command(BaseCommand):
    help = "Delete what is older than the *_DAYS settings allow, in small steps. The service may run."

    def handle(self, *args: Any, **options: Any) -> None:
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
            raise CommandError(f"Stopped by the database: {error}. What is gone is in the books.") from None
        for kind, rows in gone.items():
            self.stdout.write(f"{rows:,} {kind}")
        if not gone:
            self.stdout.write("Nothing is old enough.")
