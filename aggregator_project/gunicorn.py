"""gunicorn's configuration: `gunicorn -c python:aggregator_project.gunicorn aggregator_project.wsgi`."""

import gc
import logging
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aggregator_project.settings")

from django.conf import settings
from gunicorn.glogging import Logger

from aggregator_project.doors import open_doors
from aggregator_project.stack import address_of
from aggregator_project.tether import end_with

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker


class Log(Logger):
    """gunicorn's, without an access log: given LOGGING it puts each line together, although nobody writes it."""

    access_log_enabled = False


#: Connections a process has at a time, where the limit of files carries so many.
MOST_CONNECTIONS = 800
#: Files that a process may have open besides: 16 of its own to begin with, and for each thread up to four of SQLite's,
#: the cache and the broker. With 40 busy clients it had 40 of them.
OTHER_FILES = 60 + 8 * settings.WEB_THREADS


def connections_within_limit() -> int:
    """Raises the soft limit of open files as far as it is needed and allowed; it is 256 on macOS.

    Returns:
        Connections that the limit carries, MOST_CONNECTIONS at most.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MOST_CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        # macOS has a limit of its own besides; then what there is has to do.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return MOST_CONNECTIONS
    # With fewer than twice the threads nobody could be kept; what goes beyond the limit then waits, see gathering.py.
    return max(soft - OTHER_FILES, 2 * settings.WEB_THREADS)


bind = f"[{settings.BIND}]:{settings.PORT}" if ":" in settings.BIND else f"{settings.BIND}:{settings.PORT}"
# Threads, which one SQLite file serves as well as processes do, but none of them for a slow client: see gathering.py.
worker_class = "aggregator_project.gathering.GatheringWorker"
workers = settings.WEB_PROCESSES
threads = settings.WEB_THREADS
# Loaded once in the master: the processes share its memory, and /stats its start time.
preload_app = True
keepalive = settings.KEEPALIVE_SECONDS
#: Seconds a process may be silent before it is replaced. Threads keep it talking, so this is for a process that hangs.
timeout = 30
#: Seconds for requests in flight when the service is stopped; less than stack.STOP_SECONDS.
graceful_timeout = 6
# A listening socket a process: of one that they share, the first to wake takes every connection of a burst, and with
# keep-alive it keeps them, while the others idle (16 of 16 in four of five runs). Only Linux spreads them.
reuse_port = sys.platform == "linux"
#: Connections that wait to be taken, while all processes are busy.
backlog = 2048
worker_connections = connections_within_limit()
# A page of events with three filters of 255 characters each, all of them escaped, has about 9,500; 8,190 is the most
# that gunicorn can be told. A request's line and headers together: see gathering.py.
limit_request_line = 8190
limit_request_fields = 64
limit_request_field_size = 8190
# TRUSTED_PROXIES is applied in proxies.py, which knows X-Forwarded-For as well; gunicorn itself trusts nobody.
forwarded_allow_ips = ""
# The heartbeat file must not wait for a busy disk.
_memory = Path("/dev/shm")  # noqa: S108  (gunicorn makes its file there with a random name)
worker_tmp_dir = str(_memory) if _memory.is_dir() else None
logconfig_dict: dict[str, Any] = settings.LOGGING
# To the handlers of LOGGING only.
errorlog = accesslog = None
logger_class = Log
# gunicorn listens for its own command line on a socket in the home folder; nothing here uses it.
control_socket_disable = True
proc_name = "aggregator-web"


def when_ready(_server: "Arbiter") -> None:
    # What is loaded now stays for good. The collector would write to all of it, so that no process shared it any more.
    gc.collect()
    gc.freeze()
    log = logging.getLogger("gunicorn")
    log.info("ready on %s", address_of(settings.PORT))
    for door in open_doors():
        log.warning(door)


def post_fork(_server: "Arbiter", worker: "Worker") -> None:
    end_with(worker.ppid)
    if settings.NOTIFY_URL:
        # Here, because an HTTP client takes memory that most installations can spare.
        from events import alerts

        alerts.start()
