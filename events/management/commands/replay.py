"""`manage.py replay`: dead letters back into the inbox."""

from typing import Any

from django.core.management.base import CommandError, CommandParser

from events.dead_letters import replay
from events.management.base import BaseCommand, add_dead_letters, chosen_dead_letters


class Command(BaseCommand):
    help = "Put dead letters back into the inbox. All attempts are available again."

    def add_arguments(self, parser: CommandParser) -> None:
        add_dead_letters(
            parser,
            ids="number of a dead letter or of a discarded batch",
            all_="all dead letters, but not discarded ones",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        done = replay(chosen_dead_letters(self, options))
        self.stdout.write(f"Pending again: {', '.join(map(str, done)) or 'none'}")
        if left := sorted(set(options["batches"]) - set(done)):
            raise CommandError(f"Neither a dead letter nor discarded: {', '.join(map(str, left))}")
