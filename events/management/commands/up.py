"""`manage.py up`: the whole service. Prepares what it needs, then becomes the supervisor of its parts."""

import errno
import fcntl
import os
import shutil
import socket
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings
from django.core.management.base import CommandError, CommandParser

from aggregator_project.doors import open_doors
from aggregator_project.running import LOCK_FILE, Service, announce
from aggregator_project.stack import NoBroker, add_options, address_of, supervisor_command
from events.checks import exit_on_errors
from events.management.base import BaseCommand
from events.management.commands.prepare import create_admin, prepare_database


class Command(BaseCommand):
    help = "Run the whole service in this terminal: broker, web, worker with beat, Flower. Ctrl-C stops it."
    # exit_on_errors() says the same in a line a mistake.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        # For --help and mistakes. manage.py has put them into the environment, before the settings were read.
        add_options(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        exit_on_errors()
        claim_data_folder()
        check_ports()
        prepare_database(self.stdout)
        password = create_admin()
        try:
            command = supervisor_command()
        except NoBroker as error:
            raise CommandError(str(error)) from None
        announce(Service(str(settings.DATA_DIR), address_of(settings.PORT), variables=given_settings()))
        self.stdout.write(banner(password))
        self.stdout.flush()
        # Where the parts look for their modules.
        os.chdir(settings.BASE_DIR)
        os.execve(command[0], command, supervisor_environment())  # noqa: S606 (it is to be this process)


def claim_data_folder() -> None:
    """Make this the only stack on DATA_DIR, until the last process that inherits the lock is gone.

    Raises:
        CommandError: another one runs there.
    """
    file = settings.DATA_DIR / LOCK_FILE
    file.parent.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 20).decode().strip()
        raise CommandError(
            f"`manage.py up` runs already on {settings.DATA_DIR} (process {holder}). "
            "Stop it, or give this one another folder with --data-dir."
        ) from None
    os.truncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    # Kept by the supervisor that this process becomes.
    os.set_inheritable(lock, True)


def check_ports() -> None:
    """Say which port is taken before anything is started.

    Raises:
        CommandError: a port is taken, or BIND is no address of this machine.
    """
    ports = {"--port": settings.PORT}
    if not settings.NO_FLOWER:
        ports["--flower-port"] = settings.FLOWER_PORT
    if len(set(ports.values())) < len(ports):
        raise CommandError(f"--port and --flower-port are both {settings.PORT}; they must differ.")
    with ExitStack() as listeners:
        for option, port in ports.items():
            try:
                family, *_, address = socket.getaddrinfo(settings.BIND, port, type=socket.SOCK_STREAM)[0]
                listener = listeners.enter_context(closing(socket.socket(family, socket.SOCK_STREAM)))
                # As the servers do: connections of an earlier run that are closing do not count.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address[:2])
                listener.listen()
            except PermissionError:
                raise CommandError(
                    f"Port {port} needs more rights than this user has; choose another with {option}."
                ) from None
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise CommandError(
                        f"Port {port} on {settings.BIND} is taken{by_whom(port)}. "
                        f"Stop what listens there, or choose another port with {option}."
                    ) from None
                raise CommandError(f"BIND {settings.BIND!r} is no address of this machine: {error.strerror}.") from None


def by_whom(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    try:
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr.port == port and found.pid:
                return f" by {psutil.Process(found.pid).name()} (process {found.pid})"
    except psutil.Error:
        pass
    return " by another program"


def banner(password: str | None) -> str:
    """What a person needs to know now."""
    api = address_of(settings.PORT)
    rows = [("API", api), ("Docs", f"{api}/docs"), ("Admin", f"{api}/admin/")]
    if not settings.NO_FLOWER:
        rows.append(("Flower", address_of(settings.FLOWER_PORT)))
    rows.append(("Data", str(settings.DATA_DIR)))
    lines = ["", "Event aggregator", ""]
    lines += [f"  {name:<8}{where}" for name, where in rows]
    if password:
        lines += ["", f"  Log in to the admin as admin with {password}", "  It is shown this once only."]
    lines += [line for door in open_doors() for line in ("", f"  WARNING: {door}")]
    lines += ["", "Ctrl-C stops it.", ""]
    return "\n".join(lines)


def given_settings() -> dict[str, str]:
    """The settings that the environment or the options of this command give."""
    return {name: os.environ[name] for name in settings.ENVIRONMENT.names if os.environ.get(name)}


def empty_temporary_folder() -> Path:
    """A temporary folder of the stack's own: what parts that are killed leave there goes with the next start."""
    folder = settings.DATA_DIR / "run" / "tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def supervisor_environment() -> dict[str, str]:
    """The environment of the supervisor and, through it, of every part."""
    environment = os.environ | {"DATA_DIR": str(settings.DATA_DIR), "TMPDIR": str(empty_temporary_folder())}
    # Each part sets it for itself. Flower does not: its own metrics are at its own address.
    environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
    terminal = sys.stderr.isatty()
    if settings.LOG_FORMAT == "auto":
        environment["LOG_FORMAT"] = "console" if terminal else "json"
    if terminal and "NO_COLOR" not in environment:
        environment["FORCE_COLOR"] = "1"
    return environment
