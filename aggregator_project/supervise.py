"""supervisord for the stack: starts the parts, starts them again when they die, passes their lines on, stops them.

A script of its own, without Django, because it stays in memory: `python -P supervise.py supervisord.conf`. It is
supervisord in the foreground but for what its configuration cannot say: a pause between starts that grows to a limit,
SIGHUP as the end of the terminal instead of a restart, lines like those of the parts, a broker whose files are broken.
"""

import json
import os
import re
import signal
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from supervisor import events, loggers
from supervisor.medusa.asyncore_25 import ExitNow
from supervisor.options import ServerOptions
from supervisor.states import SupervisorStates
from supervisor.supervisord import Supervisor

#: Seconds between two starts of a part that keeps dying: doubled with every one, up to this. A start that fails costs a
#: second of work, and what was in its way may go at any time.
LONGEST_PAUSE_SECONDS = 8

#: Starts in a row that the broker may fail before its files are put aside.
BROKER_STARTS = 2

#: `23:M 21 Oct 2025 14:30:00.123 # text`
BROKER_WARNING = re.compile(r"\d+:\w .*? # (.*)")


class Options(ServerOptions):
    """supervisord's options, its signals and its own lines."""

    def setsignals(self) -> None:
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        super().setsignals()
        if ignored:  # nohup
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def get_signal(self) -> int | None:
        received = super().get_signal()
        return signal.SIGTERM if received == signal.SIGHUP else received

    def make_logger(self) -> None:
        self.logger = loggers.getLogger(self.loglevel)
        self.logger.addHandler(Lines())


class Lines(loggers.Handler):
    """supervisord's own lines, in the form of the others'."""

    def emit(self, record: Any) -> None:
        level = "warning" if record.level < loggers.LevelsByName.ERRO else "error"
        say("stack", record.asdict()["message"], level=level)


class Stack(Supervisor):
    """supervisord itself."""

    def runforever(self) -> None:
        events.subscribe(events.ProcessStateBackoffEvent, pause)
        events.subscribe(events.ProcessLogStdoutEvent, pass_on_broker)
        events.subscribe(events.ProcessLogStderrEvent, pass_on)
        wake = Wake()
        self.options.get_socket_map()[wake.fd] = wake
        # At once, where supervisord waits a second for something to happen first.
        for group in sorted(self.process_groups.values()):
            group.transition()
        super().runforever()


class Wake:
    """Wakes supervisord's loop when a signal comes, SIGCHLD too. It would look for signals once a second (PEP 475)."""

    def __init__(self) -> None:
        self.fd, rung = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(rung, False)
        signal.set_wakeup_fd(rung, warn_on_full_buffer=False)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        os.read(self.fd, 4096)


def pause(event: Any) -> None:
    """A part died right after its start: wait before the next one, longer each time."""
    process = event.process
    seconds = min(2 ** (min(process.backoff, 10) - 1), LONGEST_PAUSE_SECONDS)
    process.delay = time.time() + seconds
    say("stack", f"{process.config.name} keeps ending; it is started again in {seconds} s", level="warning")
    if process.config.name == "broker" and process.backoff == BROKER_STARTS:
        put_broker_files_aside()


def put_broker_files_aside() -> None:
    """The broker only holds rings, which the worker makes up for by itself. Better none of them than no broker."""
    folder = Path(os.environ["DATA_DIR"]) / "broker"
    aside = folder.with_name(f"broker-broken-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    try:
        folder.rename(aside)
        folder.mkdir(mode=0o700)
    except OSError as error:
        # Raised from here it would end the supervisor, and with it all that works without a broker.
        say("stack", f"the broker does not start, and its files cannot be put aside: {error}", level="error")
        return
    say("stack", f"the broker does not start; its files are in {aside} now, and it begins with none", level="warning")


def pass_on(event: Any) -> None:
    """Parts write finished lines to stderr. (What libraries say to people goes to stdout, and is not for the log.)"""
    write(event.data)


def pass_on_broker(event: Any) -> None:
    """The broker is not ours: it writes lines of its own kind, to stdout."""
    process = event.process
    if process.config.name != "broker" or process.config.options.mood < SupervisorStates.RUNNING:
        return
    for line in event.data.decode(errors="replace").splitlines():
        warning = BROKER_WARNING.match(line)
        if warning and "Memory overcommit" not in line:  # about snapshots, which are off
            say("broker", warning[1], level="warning")


def say(part: str, text: str, *, level: str) -> None:
    """One line in the form of logs.py, which `manage.py up` has settled in LOG_FORMAT."""
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    if os.environ.get("LOG_FORMAT") == "console":
        line = f"{at} [{level}] {part:<7} {text}"
    else:
        line = json.dumps({"event": text, "level": level, "timestamp": at, "part": part})
    write(f"{line}\n".encode())


def write(lines: bytes) -> None:
    try:
        while lines:
            lines = lines[os.write(2, lines) :]
    except OSError:
        pass  # the terminal or the pipe is gone; the service is not


def main() -> None:
    options = Options()
    options.realize(["-n", "-c", sys.argv[1]])
    options.first = True
    options.test = False
    with suppress(ExitNow):
        Stack(options).main()


if __name__ == "__main__":
    main()
