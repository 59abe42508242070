"""`manage.py transfer`: an installation moves from SQLite to PostgreSQL, and its books with it."""

import fcntl
import json
import subprocess
from pathlib import Path

import pytest

from tests.faults.service import manage
from tests.pipeline.engines import PostgreSQL

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.timeout(180)]

#: Run in the source: publishes, stores some of it, leaves the rest pending, and makes what else there is.
FILL = """
from django.contrib.auth import get_user_model
from events import inbox, keys, store, wire
row, _ = keys.create("reader", may_publish=True, may_read=True, topics=["t"])
get_user_model().objects.create_superuser("admin", password="x")
def publish(n, key=None):
    inbox.accept([wire.Event(topic=f"t{i % 70 % 3}", event_id=str(i % 70), source="é", payload=wire.Raw(b'{"n":1e400}'))
                  for i in range(n, n + 10)], idempotency_key=key, api_key=row)
for n in range(0, 100, 10):
    publish(n, f"k{n}")
while store.store_chunk()[0].batches:
    pass
publish(500)
from events import erasure, payload_search
erasure.erase("t0", "0", by="me")
payload_search.create_index(("n",))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for command in (["migrate", "-v", "0"], ["shell", "-c", FILL]):
        done = manage(folder, *command)
        assert done.returncode == 0, done.stderr
    return folder


#: Run on either side: every row.
ROWS = """
import json
from events.models import *
tables = Event, Batch, Duplicate, Erasure, TopicTotal, SourceTotal, TopicMinute, Minute, Delay, ApiKey
text = lambda value: str(bytes(value) if isinstance(value, memoryview) else value)
print(json.dumps([list(map(text, row)) for table in tables for row in table.objects.order_by("pk").values_list()]))
"""


def listed(folder: Path, **variables: str) -> list[list[str]]:
    done = manage(folder, "shell", "-v", "0", "-c", ROWS, **variables)
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    return found


def test_everything_is_there_and_the_service_goes_on(source: Path, postgresql: PostgreSQL) -> None:
    url = postgresql.database()
    done = manage(source, "transfer", "--to", url)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "The books are the same on both sides: received 110, unique 70" in done.stdout
    assert listed(source) == listed(source, DATABASE_URL=url)
    # An index does not come with its row.
    assert "made anew, with the new DATABASE_URL: manage.py index payload.n\n" in done.stdout
    assert manage(source, "index", DATABASE_URL=url).stdout == ""
    again = manage(source, "transfer", "--to", url)
    assert again.returncode == 0, again.stderr
    # Numbers go on where they were, and what was pending is stored.
    more = FILL.replace('create_superuser("admin"', 'create_superuser("other"').replace('"k{n}"', '"again{n}"')
    done = manage(source, "shell", "-c", more, DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    audited = manage(source, "audit", DATABASE_URL=url)
    assert audited.returncode == 0, audited.stdout
    assert manage(source, "audit").returncode == 0


def test_numbers_go_on_also_where_retention_has_taken_the_last_rows(source: Path, postgresql: PostgreSQL) -> None:
    """Of an old batch the events stay. A new one with its number would take them for its own."""
    url = postgresql.database()
    prune = "from events import retention; from django.conf import settings; settings.BATCH_RETENTION_DAYS = 1\n"
    prune += "from events.models import Batch; from datetime import datetime, UTC; from events import store\n"
    prune += "while store.store_chunk()[0].batches: pass\n"
    prune += "Batch.objects.update(processed_at=datetime(2000, 1, 1, tzinfo=UTC))\n"
    prune += "list(retention.prune()); assert not Batch.objects.exists()"
    done = manage(source, "shell", "-c", prune)
    assert done.returncode == 0, done.stderr
    done = manage(source, "transfer", "--to", url)
    assert done.returncode == 0, done.stderr + done.stdout
    assert postgresql.rows("SELECT nextval('events_batch_id_seq')", url.rpartition("/")[2]) == [(12,)]


def interrupt(source: Path, url: str, table: str, rows: int) -> None:
    """Begins a transfer, and kills it when so many rows of a large table are there."""
    script = (
        "from django.core.management import call_command; from events import transfer\n"
        "transfer.SLICE_ROWS = 7\n"
        "copy = transfer._copy_large\n"
        "def stop(model, *rest):\n"
        "    for progress in copy(model, *rest):\n"
        "        yield progress\n"
        f"        if progress.table == '{table}' and progress.rows >= {rows}: raise SystemExit(3)\n"
        "transfer._copy_large = stop\n"
        f"call_command('transfer', to='{url}')\n"
    )
    assert manage(source, "shell", "-c", script).returncode == 3


def test_it_goes_on_where_it_was_interrupted(source: Path, postgresql: PostgreSQL) -> None:
    url = postgresql.database()
    interrupt(source, url, "events_event", 21)
    name = url.rpartition("/")[2]
    assert postgresql.rows("SELECT count(*) FROM events_event", name) == [(21,)]
    done = manage(source, "transfer", "--to", url)
    assert done.returncode == 0, done.stderr + done.stdout
    assert listed(source) == listed(source, DATABASE_URL=url)


#: What somebody does in the source between the interruption and the next run.
SHOWN = """
from django.contrib.auth import get_user_model
from events import inbox, keys, store, wire
from events.models import ApiKey, TopicTotal
keys.revoke([ApiKey.objects.get().prefix])
get_user_model().objects.update(is_active=False)
row, _ = keys.create("another", may_publish=True, may_read=False)
inbox.accept([wire.Event(topic="new", event_id="new", source="s", payload=wire.Raw(b"{}"))], api_key=row)
"""


def test_what_was_revoked_and_added_since_the_interruption_is_there(source: Path, postgresql: PostgreSQL) -> None:
    url = postgresql.database()
    interrupt(source, url, "events_duplicate", 7)
    done = manage(source, "shell", "-c", SHOWN)
    assert done.returncode == 0, done.stderr
    done = manage(source, "transfer", "--to", url)
    assert done.returncode == 0, done.stderr + done.stdout
    assert listed(source) == listed(source, DATABASE_URL=url)
    name = url.rpartition("/")[2]
    revoked = "SELECT name, revoked_at IS NOT NULL FROM events_apikey ORDER BY id"
    assert postgresql.rows(revoked, name) == [("reader", True), ("another", False)]
    assert postgresql.rows("SELECT is_active FROM auth_user", name) == [(False,)]


#: What may have been done in the source to rows that an earlier run has copied.
CHANGES = [
    "Batch.objects.filter(pk=1).update(error='x')",
    "Batch.objects.filter(status='pending').update(status='discarded')",
    "Batch.objects.filter(pk=2).delete()",
    "Event.objects.filter(pk=3).update(payload='')",
    "Event.objects.filter(pk=4).delete()",
    "Duplicate.objects.filter(pk=1).update(payload='x')",
    "Duplicate.objects.filter(pk=1).delete()",
    "Duplicate.objects.all().delete()",
    "ApiKey.objects.update(hashed_key='x')",
]
#: Tries each of them, takes it back, and prints those for which the target was not refused.
TRY = """
from django.db import connections, transaction
from events import transfer
from events.models import *
from aggregator_project.environment import Environment
target = Environment({"X": "URL"}).database("X", {}, ["postgres"])
connections.settings["target"] = connections.configure_settings({"default": target})["default"]
for change in CHANGES:
    with transaction.atomic():
        exec(change)
        try:
            next(transfer.transfer("default", "target"))
            print("not refused:", change)
        except transfer.NotOurs:
            pass
        transaction.set_rollback(True)
"""


def test_what_was_changed_since_it_was_copied_is_refused(source: Path, postgresql: PostgreSQL) -> None:
    url = postgresql.database()
    interrupt(source, url, "events_duplicate", 7)
    script = TRY.replace("URL", url).replace("CHANGES", repr(CHANGES))
    done = manage(source, "shell", "-v", "0", "-c", script)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    # And as a person sees it.
    assert manage(source, "shell", "-c", f"from events.models import *; {CHANGES[0]}").returncode == 0
    done = manage(source, "transfer", "--to", url)
    assert done.returncode == 1
    assert "events_batch" in done.stderr
    assert "the source was written to since an earlier run copied them" in done.stderr


def test_a_target_of_somebody_else_is_refused(source: Path, tmp_path: Path, postgresql: PostgreSQL) -> None:
    url = postgresql.database()
    assert manage(source, "migrate", "-v", "0", DATABASE_URL=url).returncode == 0
    assert manage(source, "shell", "-c", FILL.replace("é", "other"), DATABASE_URL=url).returncode == 0
    before = listed(source, DATABASE_URL=url)
    done = manage(source, "transfer", "--to", url)
    assert done.returncode == 1
    assert "holds rows that the source does not" in done.stderr
    assert listed(source, DATABASE_URL=url) == before


def test_a_running_service_is_refused(source: Path, postgresql: PostgreSQL) -> None:
    (source / "run").mkdir(exist_ok=True)
    with (source / "run" / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = manage(source, "transfer", "--to", postgresql.database())
    assert done.returncode == 1
    assert "Stop it first" in done.stderr


@pytest.mark.parametrize("url", ["sqlite:////x", "mysql://root@127.0.0.1/x", "nonsense"])
def test_only_postgresql_is_a_target(source: Path, url: str) -> None:
    done = manage(source, "transfer", "--to", url)
    assert done.returncode == 1
    assert "--to is" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["mysql://root@127.0.0.1:3306/x", "mariadb://root@127.0.0.1:3306/x"])
def test_mariadb_is_refused_in_one_line(tmp_path: Path, url: str) -> None:
    done: subprocess.CompletedProcess[str] = manage(tmp_path, "up", DATABASE_URL=url)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"DATABASE_URL is '{url.split(':')[0]}:…'; it must be a URL that starts with sqlite://")
