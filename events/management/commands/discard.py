"""`manage.py discard`: gives dead letters up."""

from typing import Any

from django.core.management.base import CommandError, CommandParser

from events.dead_letters import discard
from events.management.base import BaseCommand, add_dead_letters, chosen_dead_letters


class Command(BaseCommand):
    help = "Give dead letters up: their events are not stored and count as discarded. `replay` brings them back."

    def add_arguments(self, parser: CommandParser) -> None:
        add_dead_letters(parser, ids="number of a dead letter", all_="all dead letters")

    def handle(self, *args: Any, **options: Any) -> None:
        done = discard(chosen_dead_letters(self, options))
        self.stdout.write(f"Discarded: {', '.join(map(str, done)) or 'none'}")
        if left := sorted(set(options["batches"]) - set(done)):
            raise CommandError(f"Not a dead letter: {', '.join(map(str, left))}")
