"""`manage.py index`: indexes for searching by a value in the payload."""

from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError, connection

from events import payload_search
from events.management.base import BaseCommand, one_line
from events.payload_search import PREFIX, InvalidCondition


class Command(BaseCommand):
    help = "Create an index for searches by a payload field, list the indexes, or remove one."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("path", nargs="?", help="the payload field, such as payload.user.id; if left out, list all")
        parser.add_argument("--drop", action="store_true", help="remove the index of this path")

    def handle(self, *args: Any, **options: Any) -> None:
        given = options["path"]
        if given is None:
            if options["drop"]:
                raise CommandError("Say which index: manage.py index --drop payload.user.id")
            for path in payload_search.indexed_paths():
                self.stdout.write(PREFIX + ".".join(path))
            return
        try:
            path = payload_search.read_path(given.removeprefix(PREFIX))
        except InvalidCondition as error:
            raise CommandError(f"{given}: {error}.") from None
        name = PREFIX + ".".join(path)
        if options["drop"]:
            if not payload_search.drop_index(path):
                raise CommandError(f"{name} has no index.")
            self.stdout.write(f"{name} has no index any more.")
            return
        if connection.vendor == "sqlite":
            self.stderr.write("SQLite writes nothing else meanwhile; publishes are refused with 503 if it takes long.")
        try:
            made = payload_search.create_index(path)
        except DatabaseError as error:
            raise CommandError(f"The index of {name} could not be made: {one_line(error)}") from None
        self.stdout.write(f"{name} has an index now." if made else f"{name} has an index already.")
