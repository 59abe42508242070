"""What all commands of the service share: --help without Django's options, and usage errors with the cause first."""

from argparse import Action
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from django.core.management import base
from django.db import Error as DatabaseError

#: They work in every command, and are no help to whoever looks for the options of one.
DJANGOS_OPTIONS = {
    "--version",
    "--verbosity",
    "--settings",
    "--pythonpath",
    "--traceback",
    "--no-color",
    "--force-color",
    "--skip-checks",
}


class HelpFormatter(base.DjangoHelpFormatter):
    """Leaves Django's options out."""

    def add_usage(self, usage: str | None, actions: Iterable[Action], *args: Any, **options: Any) -> None:
        super().add_usage(usage, _ours(actions), *args, **options)

    def add_arguments(self, actions: Iterable[Action]) -> None:
        super().add_arguments(_ours(actions))


def _ours(actions: Iterable[Action]) -> list[Action]:
    return [action for action in actions if DJANGOS_OPTIONS.isdisjoint(action.option_strings)]


class Parser(base.CommandParser):
    """Says what is wrong in one line; argparse says it below all of the usage."""

    def error(self, message: str) -> NoReturn:
        if not self.called_from_command_line:
            super().error(message)
        self.exit(2, f"{message} ({self.prog} --help says more)\n")


class BaseCommand(base.BaseCommand):
    """The base of every command of the service."""

    def create_parser(self, prog_name: str, subcommand: str, **options: Any) -> base.CommandParser:
        # A command without arguments of its own has just Django's.
        djangos = base.BaseCommand().create_parser(prog_name, subcommand, add_help=False)
        parser = Parser(
            prog=djangos.prog,
            description=self.help,
            formatter_class=HelpFormatter,
            called_from_command_line=getattr(self, "_called_from_command_line", None),
            parents=[djangos],
            **options,
        )
        self.add_arguments(parser)
        return parser

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except DatabaseError as error:
            raise base.CommandError(f"The database cannot be used: {one_line(error)}") from error

    def usage_error(self, message: str) -> NoReturn:
        """Ends the command because its arguments make no sense together, as a mistake in one of them does.

        Raises:
            CommandError: with exit code 2.
        """
        raise base.CommandError(message, returncode=2)


def one_line(error: Exception) -> str:
    """What an error says, without the line breaks that PostgreSQL's have."""
    return " ".join(str(error).split()) or type(error).__name__


def add_dead_letters(parser: base.CommandParser, *, ids: str, all_: str) -> None:
    """Adds the arguments that choose dead letters.

    Args:
        parser: the command's.
        ids: what the numbers are, for --help.
        all_: what --all means, for --help.
    """
    parser.add_argument("batches", nargs="*", type=int, metavar="ID", help=ids)
    parser.add_argument("--all", action="store_true", help=all_)


def chosen_dead_letters(command: BaseCommand, options: Mapping[str, Any]) -> Sequence[int] | None:
    """The numbers that were given, or None for --all.

    Raises:
        CommandError: neither or both were given.
    """
    if options["batches"] and options["all"]:
        command.usage_error("Give numbers or --all, not both.")
    if not options["batches"] and not options["all"]:
        command.usage_error("Give the numbers of the dead letters, or --all for every one.")
    return None if options["all"] else options["batches"]
