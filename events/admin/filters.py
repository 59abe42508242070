"""What lists can be filtered by. Every filter is one that an index serves."""

from collections.abc import Sequence
from datetime import datetime
from itertools import accumulate
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db import connection
from django.db.models import QuerySet, Value
from django.db.models.functions import Concat

from events.api.events import Query
from events.models import KEY_LENGTH, Batch, Duplicate, Event, SourceTotal, TopicTotal
from events.payload_search import PREFIX, Condition, InvalidCondition, read_condition
from events.timestamps import parse_timestamp

#: Events that a search by the beginning of an id finds at most: enough to see, and it never sorts a million.
PREFIX_MATCHES = 200
#: Batches that a search by a request id finds at most: one request is one batch, unless a caller uses its id again.
BATCHES_FOUND = 200
#: Batches that are not processed and whose request id is compared; usually there is none, after an outage a million.
OPEN_COMPARED = 1000
#: Bytes of their bodies at most: SQLite reads the body to get at what lies behind it in the row.
OPEN_BYTES = 32 * 1024 * 1024
#: Events that are sorted by time for a page at most: some 50 ms.
SORTED = 10_000
#: The last character of Unicode: everything that begins with a text sorts between the text and the text with it.
_LAST = chr(0x10FFFF)
_LARGEST_ID = 2**63 - 1


def status_word(status: str) -> str:
    """What people call the status: what has failed for good is a dead letter everywhere."""
    return "dead letter" if status == Batch.Status.FAILED else status


def begins_with(field: str, text: str) -> dict[str, str]:
    """Lookups for what begins with a text, in a form that an index serves; capital and small letters differ."""
    return {f"{field}__gte": text, f"{field}__lt": text + _LAST, f"{field}__startswith": text}


def with_request_id(request_id: str, most: int) -> list[int]:
    """The numbers of batches whose request id is this, or begins so.

    Args:
        most: batches that are found at most, beside the open ones.
    """
    # The index holds just what is processed: a publish does not wait for it to be written.
    processed = Batch.objects.filter(processed_at__isnull=False, **begins_with("request_id", request_id))
    found = list(processed.order_by().values_list("pk", flat=True)[:most])
    waiting = Batch.objects.filter(pk__in=_some_open()).values_list("pk", "request_id")
    return found + [pk for pk, known in waiting if known.startswith(request_id)]


def _some_open() -> list[int]:
    """The numbers of batches that are not processed, as many as can be read in no time; their index has the sizes."""
    sizes = Batch.objects.filter(processed_at__isnull=True).order_by("status", "id").values_list("pk", "size")
    rows = list(sizes[:OPEN_COMPARED])
    totals = accumulate(size for _, size in rows)
    return [pk for (pk, _), total in zip(rows, totals, strict=True) if total <= OPEN_BYTES]


def is_number(text: str) -> bool:
    """Whether it can be the id of a row."""
    return text.isascii() and text.isdigit() and len(text) < len(str(_LARGEST_ID))


class Filters(forms.Form):
    """Base of the filters of a list: a form that is sent with GET."""

    @property
    def order(self) -> list[str]:
        """The fields that rows are sorted by, oldest first. The last one is unique."""
        return ["id"]

    @property
    def active(self) -> bool:
        return any(self.data.get(name) for name in self.fields)

    @property
    def scanned(self) -> Sequence[Condition]:
        """Values in the payload that no index serves, so that a list has to look at one row after the other."""
        return ()

    def wanted(self, *names: str) -> dict[str, Any]:
        """Those of the fields that were filled in."""
        return {name: self.cleaned_data[name] for name in names if self.cleaned_data.get(name) not in (None, "")}

    @property
    def grows(self) -> bool:
        """Whether what is matched later has a larger id, so that a list can tell how much is new."""
        return self.is_valid()

    def narrow(self, rows: QuerySet[Any], *, after: int = 0) -> QuerySet[Any]:
        """The rows that match, of those with an id above `after`."""
        return rows.filter(pk__gt=after) if after else rows


class _KeyField(forms.CharField):
    def __init__(self, label: str, placeholder: str = "", **kwargs: Any) -> None:
        widget = forms.TextInput(attrs={"placeholder": placeholder, "autocomplete": "off", "spellcheck": "false"})
        super().__init__(label=label, max_length=KEY_LENGTH, required=False, strip=False, widget=widget, **kwargs)


class _PayloadField(forms.Field):
    """One value in the payload, as GET /events takes it."""

    def __init__(self, label: str) -> None:
        widget = forms.TextInput(
            attrs={"placeholder": "payload.user_id=123", "autocomplete": "off", "spellcheck": "false"}
        )
        super().__init__(label=label, required=False, widget=widget)

    def to_python(self, value: Any) -> Condition | None:
        if not value:
            return None
        name, equals, wanted = value.partition("=")
        name = name.strip()
        if not equals:
            raise ValidationError("Write what it is to be, as in payload.user_id=123.")
        try:
            return read_condition(PREFIX + name.removeprefix(PREFIX), wanted.strip())
        except InvalidCondition as error:
            raise ValidationError(str(error)) from None


class _NumberField(forms.IntegerField):
    def __init__(self, label: str) -> None:
        widget = forms.TextInput(attrs={"inputmode": "numeric", "autocomplete": "off"})
        super().__init__(label=label, min_value=1, max_value=_LARGEST_ID, required=False, widget=widget)


class _MomentField(forms.DateTimeField):
    def __init__(self, label: str) -> None:
        widget = forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M")
        super().__init__(label=label, required=False, widget=widget)

    def to_python(self, value: Any) -> datetime | None:
        """What since= and until= of GET /events take. Django's own takes any character between date and time."""
        try:
            return parse_timestamp(value.strip()) if value else None
        except ValueError as error:
            raise ValidationError(str(error)) from None


class _ChoiceField(forms.ChoiceField):
    def __init__(self, label: str, choices: list[tuple[str, str]]) -> None:
        super().__init__(label=label, choices=[("", "Any"), *choices], required=False)


def _found_by_id(rows: QuerySet[Any], event_id: str, topic: str) -> dict[str, Any]:
    """Lookups for the rows with this event id, or where there is none, for the first that begin with it.

    The index of the key starts with the topic, so without one the id is looked up under each topic that there is.
    """
    under = rows.filter(topic=topic) if topic else rows.filter(topic__in=TopicTotal.objects.values("topic"))
    if under.filter(event_id=event_id).exists():
        return {"event_id": event_id}
    beginning = under.filter(**begins_with("event_id", event_id))
    return {"pk__in": list(beginning.order_by().values_list("pk", flat=True)[:PREFIX_MATCHES])}


class EventFilters(Filters):
    """The filters of events, which are those of GET /events."""

    event_id = _KeyField("Event id", "evt-123, or how it begins")
    topic = _KeyField("Topic")
    source = _KeyField("Source")
    since = _MomentField("Accepted from (UTC)")
    until = _MomentField("until (UTC)")
    batch_id = _NumberField("Batch")
    payload = _PayloadField("Value in the payload")

    @property
    def scanned(self) -> Sequence[Condition]:
        wanted = self.wanted("payload").values() if self.is_valid() else ()
        return [condition for condition in wanted if not condition.is_indexed]

    @property
    def grows(self) -> bool:
        # Without an index, each question would read the payloads of all that is new.
        return super().grows and not self.scanned

    @property
    def order(self) -> list[str]:
        return ["received_at", "id"] if self.is_valid() and self.wanted("since", "until") else ["id"]

    def query(self) -> Query:
        """The same question as GET /events would be asked; valid forms only."""
        equal = self.wanted("topic", "source", "batch_id")
        if event_id := self.cleaned_data["event_id"]:
            equal |= _found_by_id(Event.objects.all(), event_id, self.cleaned_data["topic"])
        conditions = list(self.wanted("payload").values())
        return Query(
            equal=equal, since=self.cleaned_data["since"], until=self.cleaned_data["until"], conditions=conditions
        )

    def narrow(self, rows: QuerySet[Any], *, after: int = 0) -> QuerySet[Any]:
        query = self.query()
        hidden = _frequent(query.equal) if query.by_time and connection.vendor == "sqlite" else {}
        query.equal = {name: value for name, value in query.equal.items() if name not in hidden}
        found = query.matches(after=after)
        for name, value in hidden.items():
            found = found.alias(**{f"any_{name}": Concat(name, Value(""))}).filter(**{f"any_{name}": value})
        return found


def _frequent(equal: dict[str, Any]) -> dict[str, Any]:
    """Those of the lookups that match too many events to sort them all by time.

    SQLite would find them by the index of the topic or source and then sort. Said so that this index does not serve,
    it goes along the index of time instead, where what is frequent is soon found. With a million events, 50,000 of them
    of the topic, it took 37 ms instead of 197.
    """
    return {
        name: equal[name]
        for name, totals in (("topic", TopicTotal), ("source", SourceTotal))
        if name in equal and totals._default_manager.filter(**{name: equal[name]}, unique__gt=SORTED).exists()
    }


class DuplicateFilters(Filters):
    """The filters of the log of duplicates."""

    event_id = _KeyField("Event id", "evt-123, or how it begins")
    topic = _KeyField("Topic")
    source = _KeyField("Source")
    payload = _ChoiceField("Payload", [("differs", "differs from the stored one"), ("same", "is the same")])
    batch_id = _NumberField("Batch")

    def narrow(self, rows: QuerySet[Any], *, after: int = 0) -> QuerySet[Any]:
        rows = super().narrow(rows, after=after).filter(**self.wanted("topic", "source", "batch_id"))
        if event_id := self.cleaned_data["event_id"]:
            topic = self.cleaned_data["topic"]
            rows = rows.filter(**_found_by_id(Duplicate.objects.all(), event_id, topic))
            if not topic:
                rows = rows.filter(topic__in=TopicTotal.objects.values("topic"))
        if payload := self.cleaned_data["payload"]:
            rows = rows.filter(payload_differs=payload == "differs")
        return rows


class ErasureFilters(Filters):
    """The filters of erasures, which are few."""

    event_id = _KeyField("Event id")
    topic = _KeyField("Topic")

    def narrow(self, rows: QuerySet[Any], *, after: int = 0) -> QuerySet[Any]:
        return super().narrow(rows, after=after).filter(**self.wanted("event_id", "topic"))


class BatchFilters(Filters):
    """The filters of batches."""

    number = _NumberField("Batch")
    status = _ChoiceField("Status", [(status.value, status_word(status).capitalize()) for status in Batch.Status])
    request_id = _KeyField("Request id", "X-Request-ID, or how it begins")
    idempotency_key = _KeyField("Idempotency key")

    @property
    def grows(self) -> bool:
        # A batch that is pending or dead now may be an old one.
        return super().grows and not self.cleaned_data["status"]

    def narrow(self, rows: QuerySet[Any], *, after: int = 0) -> QuerySet[Any]:
        rows = super().narrow(rows, after=after).filter(**self.wanted("status", "idempotency_key"))
        if number := self.cleaned_data["number"]:
            rows = rows.filter(pk=number)
        if request_id := self.cleaned_data["request_id"]:
            rows = rows.filter(pk__in=with_request_id(request_id, BATCHES_FOUND))
        if status := self.cleaned_data["status"]:
            # Says what the index of open batches needs to hear.
            rows = rows.filter(processed_at__isnull=status != Batch.Status.PROCESSED)
        return rows
