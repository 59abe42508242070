"""The design this service replaces: one Celery task a publish, with the payload in the message.

Kept as small and as fast as it can honestly be: it reads the body with the service's own decoder, so that what is
compared is a message a publish against a row a publish. It loses events where the service does not (docs/decisions.md).
"""

from collections import Counter

from celery import shared_task
from django.db import transaction
from django.db.models import F
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from events import wire
from events.api.body import published_events
from events.models import Event, TopicTotal


class ReplacedView(APIView):
    """Hands the events to the queue."""

    def post(self, request: Request) -> Response:
        with published_events(request) as events:
            body = wire.encode(events)
        store_publish.delay(body.decode())
        return Response({"status": "accepted", "received": len(events)}, status=202)


@shared_task(name="bench.store_publish")  # type: ignore[untyped-decorator]  # Celery has no types
def store_publish(body: str) -> None:
    """Stores what is new and counts the rest."""
    now = timezone.now()
    events = wire.decode_kept(body.encode())
    rows: dict[tuple[str, str], Event] = {}
    for event in events:
        rows.setdefault(
            (event.topic, event.event_id),
            Event(
                topic=event.topic,
                event_id=event.event_id,
                source=event.source,
                timestamp=event.timestamp or now,
                payload=bytes(event.payload).decode(),
                received_at=now,
                batch_id=0,
            ),
        )
    received = Counter(event.topic for event in events)
    with transaction.atomic():
        known: set[tuple[str, str]] = set()
        for topic in received:
            ids = [event_id for of, event_id in rows if of == topic]
            stored = Event.objects.filter(topic=topic, event_id__in=ids).values_list("topic", "event_id")
            known.update(stored)
        new = [row for key, row in rows.items() if key not in known]
        Event.objects.bulk_create(new, ignore_conflicts=True)
        unique = Counter(row.topic for row in new)
        for topic, count in received.items():
            TopicTotal.objects.get_or_create(topic=topic, defaults={"first_seen": now, "last_seen": now})
            TopicTotal.objects.filter(topic=topic).update(
                unique=F("unique") + unique[topic],
                duplicates=F("duplicates") + count - unique[topic],
                last_seen=now,
            )
