"""`manage.py replay`: dead letters back into the inbox."""

from typing import Any

from django.core.management.base import CommandError, CommandParser

from events.dead_letters import replay
from events.management.base import BaseCommand


class Command(BaseCommand):
    help = "Put dead letters back into the inbox. All attempts are available again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("batches", nargs="*", type=int, metavar="ID", help="number of a failed or discarded batch")
        parser.add_argument("--all", action="store_true", help="replay all dead letters, but not discarded ones")

    def handle(self, *args: Any, **options: Any) -> None:
        if bool(options["batches"]) == options["all"]:
            raise CommandError("Name the batches to replay, or say --all for every dead letter.")
        done = replay(None if options["all"] else options["batches"])
        self.stdout.write(f"Pending again: {', '.join(map(str, done)) or 'none'}")
        if left := sorted(set(options["batches"]) - set(done)):
            raise CommandError(f"Neither failed nor discarded: {', '.join(map(str, left))}")
