"""`manage.py discard`: gives dead letters up."""

from typing import Any

from django.core.management.base import CommandError, CommandParser

from events.dead_letters import discard
from events.management.base import BaseCommand


class Command(BaseCommand):
    help = "Give dead letters up: their events are not stored and count as discarded. `replay` brings them back."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("batches", nargs="+", type=int, metavar="ID", help="number of a dead letter")

    def handle(self, *args: Any, **options: Any) -> None:
        done = discard(options["batches"])
        self.stdout.write(f"Discarded: {', '.join(map(str, done)) or 'none'}")
        if left := sorted(set(options["batches"]) - set(done)):
            raise CommandError(f"No dead letters: {', '.join(map(str, left))}")
