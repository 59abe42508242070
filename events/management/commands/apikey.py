"""`manage.py apikey`: makes, lists and revokes API keys."""

from collections.abc import Callable
from io import StringIO
from typing import Any

from django.core.management.base import CommandError, CommandParser
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from events import keys
from events.management.base import BaseCommand
from events.models import ApiKey

#: What a key may be allowed.
SCOPES = ("publish", "read", "erase")


class Command(BaseCommand):
    help = "Create, list and revoke API keys."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        create = actions.add_parser("create", help="create a key and show it once")
        create.add_argument("name", help="a name that says what the key is for")
        create.add_argument("scopes", nargs="+", choices=SCOPES, help="what the key allows")
        create.add_argument(
            "--topic",
            action="append",
            default=[],
            dest="topics",
            metavar="BEGINNING",
            help="allow only topics that begin with this; repeat the option for several",
        )
        actions.add_parser("list", help="list all keys")
        revoke = actions.add_parser("revoke", help="revoke keys; this cannot be undone")
        revoke.add_argument("prefixes", nargs="+", metavar="PREFIX", help="the first 8 characters of the key")

    def handle(self, *args: Any, **options: Any) -> None:
        actions: dict[str, Callable[..., None]] = {"create": create, "list": list_all, "revoke": revoke}
        actions[options["action"]](self, **options)


def create(command: Command, *, name: str, scopes: list[str], topics: list[str], **_: Any) -> None:
    try:
        row, key = keys.create(name, **{f"may_{scope}": scope in scopes for scope in SCOPES}, topics=topics)
    except ValueError as error:
        raise CommandError(str(error)) from None
    command.stdout.write(key)
    command.stderr.write(
        f"It is shown this once only. It may {' and '.join(row.scopes)} {_topics(row)}.\n"
        "Send it in the header Authorization: Api-Key <key>, or give it to the publisher as AGGREGATOR_API_KEY."
    )


def list_all(command: Command, **_: Any) -> None:
    table = Table("prefix", "name", "scopes", "topics", "created", "last used", "revoked", box=box.SIMPLE_HEAD)
    for row in ApiKey.objects.order_by("pk"):
        moments = (row.created_at, row.last_used_at, row.revoked_at)
        table.add_row(
            row.prefix,
            escape(row.name),
            " ".join(row.scopes),
            escape(_topics(row)),
            *(f"{moment:%Y-%m-%d %H:%M}" if moment else "–" for moment in moments),
        )
    text = StringIO()
    # As wide as it needs to be: lines of a table that were broken cannot be cut up by other programs.
    Console(file=text, width=1000).print(table)
    command.stdout.write("\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip()))


def revoke(command: Command, *, prefixes: list[str], **_: Any) -> None:
    wanted = [prefix[:8] for prefix in prefixes]
    revoked = keys.revoke(wanted)
    for prefix in revoked:
        command.stdout.write(f"{prefix} is revoked; within {keys.KNOWN_SECONDS:.0f} seconds it opens nothing.")
    if missing := sorted(set(wanted) - set(revoked)):
        raise CommandError(f"{', '.join(missing)}: no such key, or it was revoked before.")


def _topics(row: ApiKey) -> str:
    return "topics that begin with " + " or ".join(map(repr, row.topics)) if row.topics else "every topic"
