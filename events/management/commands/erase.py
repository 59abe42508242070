"""`manage.py erase`: the payload of one event, for the law."""

import getpass
from typing import Any

from django.core.management.base import CommandError, CommandParser

from events.erasure import erase
from events.management.base import BaseCommand


class Command(BaseCommand):
    help = "Erase the payload of an event everywhere. Its key stays, so a retry is still a duplicate."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--topic", required=True, help="topic of the event")
        parser.add_argument("--event-id", required=True, help="event_id of the event")

    def handle(self, *args: Any, **options: Any) -> None:
        done = erase(options["topic"], options["event_id"], by=f"manage.py erase ({_user()})")
        if done.unreadable:
            numbers = ", ".join(map(str, done.unreadable))
            raise CommandError(f"These batches cannot be read and may hold the event; all else is erased: {numbers}.")
        if not done.found:
            raise CommandError("There is no such event, neither stored nor waiting.")
        where = ["the stored event"] if done.stored else []
        where += [f"{done.duplicates} dropped duplicates"] if done.duplicates else []
        where += [f"{done.batches} waiting batches"] if done.batches else []
        self.stdout.write(f"Erased the payload of {', '.join(where)}. The key stays, and backups are yours to erase.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # In a container a user may have a number and no name.
        return "unknown user"
