"""The options of the load generator, once, for `python -m publisher` and `manage.py publish`.

Each option has an environment variable of the same meaning; the command line wins. A value that cannot be ends the
program with one line that names where it came from.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from publisher.client import checked_url

#: More threads than this measure the load generator, not the service; select() ends at 1,024 open files.
MOST_CONCURRENCY = 500


def whole(text: str, *, least: int = 1, most: int | None = None) -> int:
    """Read a whole number; 5_000 and 5000 are the same. Raises argparse.ArgumentTypeError."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a whole number') from None
    if number < least:
        raise argparse.ArgumentTypeError(f"{number} is too small, the least is {least}")
    if most is not None and number > most:
        raise argparse.ArgumentTypeError(f"{number} is too large, the most is {most}")
    return number


def share(text: str) -> float:
    """Read a share of a whole as 0.2 or 20%. Raises argparse.ArgumentTypeError unless it is from 0 to below 1."""
    percent = text.strip().endswith("%")
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a share such as 0.2 or 20%') from None
    number = number / 100 if percent else number
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f'"{text}" is not a share from 0 to below 1, such as 0.2 or 20%')
    return number


def positive(text: str) -> float:
    """Read a number above 0. Raises argparse.ArgumentTypeError."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number') from None
    if not (isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f'"{text}" is not a number above 0')
    return number


def switch(text: str) -> bool:
    """Read yes or no. Raises argparse.ArgumentTypeError."""
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f'"{text}" is neither true nor false')


def address(text: str) -> str:
    """Read the service's address. Raises argparse.ArgumentTypeError."""
    try:
        return checked_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: its name on the command line and in the environment, what it is when left out, how it is read."""

    name: str
    variable: str
    default: Any
    read: Callable[[str], Any]
    help: str


OPTIONS = (
    Option(
        name="--url",
        variable="AGGREGATOR_URL",
        default="http://127.0.0.1:8080",
        read=address,
        help="address of the service",
    ),
    Option(name="--count", variable="PUBLISH_COUNT", default=5000, read=whole, help="events to send"),
    Option(
        name="--duplicates",
        variable="PUBLISH_DUPLICATES",
        default=0.2,
        read=share,
        help="share of duplicates among the events: 0.2 or 20%%",
    ),
    Option(name="--batch-size", variable="PUBLISH_BATCH_SIZE", default=100, read=whole, help="events in one request"),
    Option(
        name="--concurrency",
        variable="PUBLISH_CONCURRENCY",
        default=4,
        read=lambda text: whole(text, most=MOST_CONCURRENCY),
        help="requests sent at the same time",
    ),
    Option(
        name="--rate",
        variable="PUBLISH_RATE",
        default=None,
        read=positive,
        help="limit of events per second; without it, as fast as possible",
    ),
    Option(name="--topics", variable="PUBLISH_TOPICS", default=5, read=whole, help="number of topics"),
    Option(
        name="--seed",
        variable="PUBLISH_SEED",
        default=1,
        read=lambda text: whole(text, least=0),
        help="the same seed sends the same events, so a second run sends only duplicates",
    ),
    Option(
        name="--fresh",
        variable="PUBLISH_FRESH",
        default=False,
        read=switch,
        help="use new event ids, whatever the seed is",
    ),
    Option(
        name="--api-key",
        variable="AGGREGATOR_API_KEY",
        default=None,
        read=str,
        help="API key; set the variable instead to keep the key out of the process list",
    ),
    Option(
        name="--wait",
        variable="PUBLISH_WAIT",
        default=30.0,
        read=positive,
        help="seconds to wait for the service to start",
    ),
)


def add_options(parser: argparse.ArgumentParser, *, environ: Mapping[str, str]) -> None:
    """Add the options to `parser`, with defaults from `environ`.

    Ends the program through `parser.error` if a variable holds what the option cannot be. An empty variable is as none.
    """
    for option in OPTIONS:
        default = option.default
        if text := environ.get(option.variable, ""):
            try:
                default = option.read(text)
            except argparse.ArgumentTypeError as error:
                parser.error(f"{option.variable}: {error}")
        if option.read is switch:
            parser.add_argument(
                option.name,
                action=argparse.BooleanOptionalAction,
                default=default,
                help=f"{option.help} ({option.variable})",
            )
        else:
            left_out = "" if option.default is None else f", default {option.default}"
            parser.add_argument(
                option.name,
                type=option.read,
                default=default,
                metavar=option.name.removeprefix("--").upper().replace("-", "_"),
                help=f"{option.help} ({option.variable}{left_out})",
            )
