"""Makes up events to publish: as many as asked for, with an exact number of repeats among them, the same for a seed.

An event follows from the seed and its number alone, so a repeat is that event made again, and nothing has to be kept:
ten million events need no more memory than ten.
"""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

Event = dict[str, Any]

#: When the first event of every sample happened. Fixed, so that the same seed gives the same bytes.
FIRST_TIMESTAMP = datetime(2025, 10, 21, 14, 30, tzinfo=UTC)

#: How far apart in time two events are.
STEP = timedelta(milliseconds=20)

#: Knuth's multiplicative hash constant: spreads consecutive numbers over 32 bits (TAOCP volume 3, section 6.4).
SPREAD = 2_654_435_761


@dataclass(frozen=True)
class Kind:
    """One kind of event: its topic, who publishes it, and the payload for an event number and a spread-out number."""

    topic: str
    source: str
    payload: Callable[[int, int], dict[str, Any]]


KINDS = (
    Kind("user.created", "auth-service", lambda n, x: {"user_id": n, "email": f"user{n}@example.com", "plan": x % 3}),
    Kind(
        "order.placed",
        "order-service",
        lambda n, x: {
            "order_id": n,
            "customer_id": x % 9973,
            "currency": "EUR",
            "total_cents": 100 + x % 50_000,
            "lines": [{"sku": f"SKU-{x % 811:04d}", "quantity": 1 + x % 4}],
        },
    ),
    Kind(
        "payment.captured",
        "payment-service",
        lambda n, x: {
            "payment_id": f"pay_{n:010d}",
            "order_id": x % 9973,
            "amount_cents": x % 50_000,
            "method": "card",
        },
    ),
    Kind(
        "shipment.sent",
        "warehouse",
        lambda n, x: {
            "shipment_id": n,
            "carrier": ("DHL", "UPS", "GLS")[x % 3],
            "parcels": 1 + x % 3,
            "express": x % 7 == 0,
        },
    ),
    Kind(
        "page.viewed", "web-shop", lambda n, x: {"path": f"/products/{x % 811}", "session": f"{x:08x}", "ms": x % 900}
    ),
    Kind("cart.updated", "web-shop", lambda n, x: {"cart_id": f"{x:08x}", "items": x % 12, "coupon": None}),
    Kind(
        "login.failed", "auth-service", lambda n, x: {"user_id": x % 9973, "ip": f"192.0.2.{x % 254}", "tries": x % 5}
    ),
    Kind(
        "stock.changed",
        "warehouse",
        lambda n, x: {"sku": f"SKU-{x % 811:04d}", "change": x % 41 - 20, "bin": f"B{x % 97}"},
    ),
    Kind("invoice.issued", "billing", lambda n, x: {"invoice": f"2025-{n:08d}", "net_cents": x % 90_000, "vat": 0.19}),
    Kind("email.bounced", "mailer", lambda n, x: {"message_id": f"{x:08x}.{n}@example.com", "code": 550, "hard": True}),
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Events to publish. Iterating gives them in the order they are sent, each time the same ones.

    `count` events go out, `duplicates` of them repeat an earlier one, `topics` is the number of topics, and `series`
    sets the event ids apart from those of other samples.
    """

    count: int
    duplicates: int
    topics: int
    seed: int
    series: str

    @property
    def unique(self) -> int:
        """The number of different events."""
        return self.count - self.duplicates

    def __iter__(self) -> Iterator[Event]:
        draw = Random(self.seed)  # noqa: S311 - it has to be repeatable, not secret
        made = 0
        for position in range(self.count):
            repeats_left = self.duplicates - (position - made)
            # Selection sampling (TAOCP volume 2, algorithm 3.4.2S): exactly `duplicates` of the positions after the
            # first, every choice of them equally likely.
            if made and draw.random() * (self.count - position) < repeats_left:
                yield self._event(int(draw.random() * made))
            else:
                yield self._event(made)
                made += 1

    def _event(self, number: int) -> Event:
        spread = number * SPREAD & 0xFFFF_FFFF
        place = (spread >> 8) % self.topics
        kind = KINDS[place % len(KINDS)]
        copy = place // len(KINDS)
        return {
            "topic": f"{kind.topic}.{copy + 1}" if copy else kind.topic,
            "event_id": f"evt-{self.series}-{number:08d}",
            "source": kind.source,
            "timestamp": (FIRST_TIMESTAMP + number * STEP).isoformat(),
            "payload": kind.payload(number, spread),
        }


def generate(count: int, *, duplicates: float = 0.2, topics: int = 5, seed: int = 1, fresh: bool = False) -> Sample:
    """Return a sample of `count` events, of which exactly `round(count * duplicates)` repeat an earlier one.

    `duplicates` is a share from 0 to below 1. The same arguments give the same events, ids and all, unless `fresh` asks
    for ids that no run had before. A repeat has the content of its original.

    Raises ValueError for numbers that cannot be.
    """
    if count < 1:
        raise ValueError(f"the count must be at least 1, not {count}")
    if topics < 1:
        raise ValueError(f"there must be at least 1 topic, not {topics}")
    if not 0 <= duplicates < 1:
        raise ValueError(f"the share of duplicates must be from 0 to below 1, not {duplicates:g}")
    repeats = round(count * duplicates)
    if repeats >= count:
        raise ValueError(f"of {count} events {repeats} cannot be duplicates: the first has nothing to repeat")
    series = secrets.token_hex(6) if fresh else str(seed)
    return Sample(count=count, duplicates=repeats, topics=topics, seed=seed, series=series)
