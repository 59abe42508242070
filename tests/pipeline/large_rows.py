"""Fills a service's database with events, duplicates and a dead letter of 10 MiB each, and logs somebody in.

Run by test_readers_memory.py through `manage.py shell`, in the service's environment. Prints the cookie of the session.
"""

import sys
from collections.abc import Iterator
from itertools import cycle, islice

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client
from django.utils import timezone

from events.models import Batch, Duplicate, Event, TopicTotal

SIZE = 10 * 1024 * 1024 - 1000


def payloads(last: str) -> Iterator[str]:
    """What costs a reader most: nested deep, wide in memory, full of what CSV doubles, full of what NDJSON escapes."""
    yield '{"a":' + "[" * 97 + "1" + ",1" * (SIZE // 2) + "]" * 97 + "}"
    yield '{"a":"\U0001f600' + "x" * SIZE + '"}'
    yield "{" + ",".join(['"":""'] * (SIZE // 6)) + "}"
    yield '{"a":"' + "\u0085" * (SIZE // 2) + f'{last}"}}'


def main(count: int) -> None:
    now = timezone.now()
    with transaction.atomic():
        for number, payload in enumerate(islice(cycle(payloads("")), count)):
            Event.objects.create(
                topic="t",
                event_id=f"{number:03}",
                source="s",
                timestamp=now,
                payload=payload,
                received_at=now,
                batch_id=1,
            )
        for number, payload in enumerate(payloads("x")):
            Duplicate.objects.create(
                topic="t",
                event_id=f"{number:03}",
                source="s",
                received_at=now,
                batch_id=1,
                payload_differs=True,
                payload=payload,
            )
        TopicTotal.objects.create(topic="t", unique=count, first_seen=now, last_seen=now)
        body = f"[{next(payloads(''))}]".encode()
        Batch.objects.create(
            accepted_at=now, next_attempt_at=now, status="failed", received=1, body=body, size=len(body), error="torn"
        )
    settings.ALLOWED_HOSTS = ["testserver"]
    client = Client()
    client.force_login(User.objects.create_superuser("reader"), "django.contrib.auth.backends.ModelBackend")
    sys.stdout.write(client.cookies[settings.SESSION_COOKIE_NAME].value)
