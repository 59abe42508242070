"""A day of history for screenshots: `python -m tests.browser.history` puts it into the folder that DATA_DIR names."""

import json
import math
import os
import random
import sys
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aggregator_project.settings")

#: Topics, how often each is published, and by whom.
TOPICS = (
    ("order.placed", 9, "shop-web"),
    ("payment.captured", 7, "payments"),
    ("shipment.updated", 6, "warehouse-eu"),
    ("user.signed_in", 5, "auth-service"),
    ("order.cancelled", 2, "shop-web"),
    ("inventory.adjusted", 4, "warehouse-us"),
    ("invoice.sent", 2, "billing"),
    ("user.created", 1, "auth-service"),
)
#: How likely a source sends an event again: the mobile gateway has a bad network.
RETRIES = {"warehouse-us": 0.35, "payments": 0.12, "shop-web": 0.08}
USUAL_RETRIES = 0.04


def event(number: int, chance: random.Random) -> dict[str, Any]:
    topic, _, source = chance.choices(TOPICS, [weight for _, weight, _ in TOPICS])[0]
    order = 48_000 + number
    payloads: dict[str, dict[str, Any]] = {
        "order": {
            "order_id": order,
            "total": round(chance.uniform(9, 400), 2),
            "currency": "EUR",
            "items": order % 5 + 1,
        },
        "payment": {"order_id": order, "amount": round(chance.uniform(9, 400), 2), "method": "card", "captured": True},
        "shipment": {"parcel": f"P{order}", "status": chance.choice(["packed", "in transit", "delivered"])},
        "user": {"user_id": order % 9000, "locale": chance.choice(["en", "de", "id", "fr"])},
        "inventory": {"sku": f"SKU-{order % 700:04}", "change": chance.randint(-5, 20), "warehouse": "us-2"},
        "invoice": {"invoice": f"2026-{order}", "to": f"customer{order % 900}@example.com"},
    }
    return {
        "topic": topic,
        "event_id": f"evt-{order:06}",
        "source": source,
        "payload": payloads[topic.split(".")[0]],
    }


def fill(now: datetime) -> None:
    """Publishes and stores a day of events, as if at their time."""
    from events import inbox, store, wire

    chance = random.Random(7)
    number = 0
    minutes = [*range(24 * 60, 60, -5), *range(60, 0, -1)]
    for ago in minutes:
        at = now - timedelta(minutes=ago)
        daily = 1 + 0.6 * math.sin((at.hour + at.minute / 60 - 9) / 24 * 2 * math.pi)
        burst = 2.2 if 17 <= ago <= 21 or 400 <= ago <= 430 else 1
        count = int(chance.gauss(36, 4) * daily * burst * (5 if ago > 60 else 1))
        events = []
        for _ in range(count):
            number += 1
            sent = event(number, chance)
            events.append(sent)
            retries = RETRIES.get(sent["source"], USUAL_RETRIES) * (1.8 if burst > 1 else 1)
            if chance.random() < retries:
                again = dict(sent)
                if sent["source"] == "warehouse-us" and chance.random() < 0.06:
                    again["payload"] = {**sent["payload"], "change": sent["payload"]["change"] + 1, "corrected": True}
                events.append(again)
        for begin in range(0, len(events), 120):
            accepted = at + timedelta(seconds=begin / 40)
            part = wire.decode(json.dumps(events[begin : begin + 120]).encode(), max_events=120)
            with patch("django.utils.timezone.now", return_value=accepted):
                inbox.accept(part)
            took = chance.lognormvariate(-3.3, 0.5) * (3 if burst > 1 else 1)
            with patch("django.utils.timezone.now", return_value=accepted + timedelta(seconds=took)):
                store.store_chunk()


def bury(now: datetime) -> None:
    """Leaves a dead letter behind."""
    from events import wire
    from events.models import Batch

    chance = random.Random(8)
    sent = [event(number, chance) for number in (90_001, 90_002)]
    body = wire.encode(wire.decode(json.dumps(sent).encode(), max_events=9))
    Batch.objects.create(
        accepted_at=now - timedelta(minutes=34),
        next_attempt_at=now - timedelta(minutes=30),
        received=len(sent),
        body=body,
        size=len(body),
        status=Batch.Status.FAILED,
        attempts=5,
        error="DataError: value too long for type character varying(255)",
    )


if __name__ == "__main__":
    django.setup()
    from django.core.management import call_command
    from django.utils import timezone

    if "--dead-letter" in sys.argv:
        bury(timezone.now())
    else:
        call_command("migrate", verbosity=0)
        fill(timezone.now())
