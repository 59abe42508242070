"""What all commands of the service share: --help without Django's options, and usage errors with the cause first."""

from argparse import Action
from collections.abc import Iterable
from typing import Any, NoReturn

from django.core.management import base

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
