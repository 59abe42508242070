"""Lets `manage.py` commands act on the service that runs, wherever its data folder and port are.

`up` leaves a file that names both, in a folder that only its user can read. A command that is not told which service it
is for takes the one that runs. Imports no Django: it decides what the settings will read.
"""

import fcntl
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

#: Where everything is kept unless DATA_DIR says otherwise.
DEFAULT_DATA_DIR = BASE_DIR / "data"

#: The SQLite database in a data folder.
DATABASE_FILE = "aggregator.sqlite3"

#: Locked by `up`, and by the supervisor that it becomes, for as long as the service runs.
LOCK_FILE = Path("run") / "up.lock"

#: Commands of ours that make an installation, or speak HTTP to one. All others act on one, and make none.
NOT_ACTING = {"demo", "prepare", "publish", "up"}

#: Commands that act on an installation: ours, and those of Django and of django-axes that need its rows.
ACTING = {
    *({path.stem for path in (BASE_DIR / "events/management/commands").glob("[a-z]*.py")} - NOT_ACTING),
    *("axes_list_attempts", "axes_reset", "axes_reset_ip", "axes_reset_username", "axes_reset_logs"),
    *("changepassword", "clearsessions", "createsuperuser", "dbshell", "dumpdata", "flush", "inspectdb", "loaddata"),
    *("shell", "showmigrations"),
}


@dataclass(frozen=True, slots=True)
class Service:
    """A service that runs.

    Attributes:
        data_dir: its data folder.
        url: where its API answers.
        base_dir: the checkout it was started from.
        variables: the settings that it was given by environment variables or options.
    """

    data_dir: str
    url: str
    base_dir: str = str(BASE_DIR)
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        """Whether it still runs: the kernel frees its lock when its last process ends."""
        try:
            lock = os.open(Path(self.data_dir) / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False


def announce(service: Service) -> None:
    """Leaves the file by which commands find the service. Without a place for it, commands need DATA_DIR as before."""
    with suppress(OSError):
        folder = _folder()
        folder.mkdir(mode=0o700, exist_ok=True)
        file = folder / f"{sha256(service.data_dir.encode()).hexdigest()[:16]}.json"
        # Written aside: a command never reads half of it.
        descriptor, fresh = tempfile.mkstemp(dir=folder)
        with open(descriptor, "w", encoding="utf-8") as opened:
            json.dump(asdict(service), opened)
        os.replace(fresh, file)


def running_services() -> list[Service]:
    """The services of this checkout and this user that run now."""
    folder = _folder()
    try:
        # In a shared folder somebody else may have been first.
        if folder.stat().st_uid != os.getuid():
            return []
        files = sorted(folder.glob("*.json"))
    except OSError:
        return []
    found = []
    for file in files:
        try:
            service = Service(**json.loads(file.read_bytes()))
        except (OSError, ValueError, TypeError):
            continue
        if not service.runs:
            file.unlink(missing_ok=True)
        elif service.base_dir == str(BASE_DIR):
            found.append(service)
    return found


def choose_service(command: str, arguments: Sequence[str]) -> None:
    """Sets the environment for a command that acts on an installation, and says on stderr which one it is.

    Args:
        command: the name of the command.
        arguments: what stands behind it; with --help it acts on nothing.

    Raises:
        SystemExit: there is no installation, or more than one service runs and nothing says which is meant.
    """
    if {"-h", "--help"} & set(arguments):
        return
    if command == "publish":
        # It needs an address, and no folder: whoever gives one has said which service is meant.
        if os.environ.get("AGGREGATOR_URL") or any(argument.startswith("--url") for argument in arguments):
            return
        if service := _chosen(running_services(), "manage.py publish --url http://…"):
            os.environ["AGGREGATOR_URL"] = service.url
        return
    if command not in ACTING or (os.environ.get("DATABASE_URL") and not os.environ.get("DATA_DIR")):
        return
    chosen = _chosen(running_services(), f"DATA_DIR=… manage.py {command}")
    if chosen:
        for name, value in chosen.variables.items():
            os.environ.setdefault(name, value)
        os.environ["DATA_DIR"] = chosen.data_dir
    folder = Path(os.environ.get("DATA_DIR") or DEFAULT_DATA_DIR).absolute()
    if not os.environ.get("DATABASE_URL") and not (folder / DATABASE_FILE).exists():
        sys.exit(
            f"There is no installation in {folder}. Start one with `manage.py up`, or name the folder of another: "
            f"DATA_DIR=… manage.py {command}"
        )
    what = f"the service at {chosen.url}, data in {folder}" if chosen else f"{folder}, where no service runs"
    print(f"Acting on {what}.", file=sys.stderr)  # noqa: T201 (Django's streams are not there yet)


def _chosen(services: Sequence[Service], example: str) -> Service | None:
    if wanted := os.environ.get("DATA_DIR"):
        return next((service for service in services if Path(service.data_dir) == Path(wanted).absolute()), None)
    if len(services) > 1:
        there = ", ".join(f"{service.data_dir} ({service.url})" for service in services)
        sys.exit(f"Several services run: {there}. Say which one is meant: {example}")
    return services[0] if services else None


def _folder() -> Path:
    # cron and sudo start commands without the variable.
    of_user = Path(f"/run/user/{os.getuid()}")
    place = os.environ.get("XDG_RUNTIME_DIR") or (of_user if of_user.is_dir() else tempfile.gettempdir())
    return Path(place) / f"event-aggregator-{os.getuid()}"
