"""The tables: Batch (inbox, receipt and dead letter in one), Event, the books that are kept while storing, API keys."""

from typing import Any

from django.db import models
from django.db.models import Q

from events.writes import CounterQuerySet, ManyRowsQuerySet

#: Characters a topic, event id, source or idempotency key may have.
KEY_LENGTH = 255


class ApiKey(models.Model):
    """Opens the API for one publisher or reader. Never deleted and never changed but for being revoked (keys.py)."""

    name = models.CharField(max_length=100, help_text="What it is for.")
    prefix = models.CharField(
        max_length=8, unique=True, help_text="The beginning of the key, by which it is told apart."
    )
    hashed_key = models.CharField(max_length=150)
    may_publish = models.BooleanField()
    may_read = models.BooleanField()
    may_erase = models.BooleanField(
        default=False, db_default=False, help_text="DELETE /events/{id}: takes payloads away for good."
    )
    topics = models.JSONField(default=list, blank=True, help_text="Beginnings of the topics it opens; none is all.")
    created_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True, help_text="To about five minutes.")
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @property
    def scopes(self) -> list[str]:
        """What it opens, in words."""
        scopes = (("publish", self.may_publish), ("read", self.may_read), ("erase", self.may_erase))
        return [scope for scope, allowed in scopes if allowed]

    def opens(self, topic: str) -> bool:
        """Whether the topic is one of those that it is bound to."""
        return not self.topics or topic.startswith(tuple(self.topics))


class Batch(models.Model):
    """One accepted publish. It is on disk before its 202, and it is the receipt afterwards."""

    class Status(models.TextChoices):
        PENDING = "pending"
        PROCESSED = "processed"
        FAILED = "failed"
        DISCARDED = "discarded"

    accepted_at = models.DateTimeField()
    status = models.CharField(max_length=9, choices=Status, default=Status.PENDING, db_default=Status.PENDING)
    received = models.PositiveIntegerField(help_text="Events in the publish.")
    unique = models.PositiveIntegerField(default=0, db_default=0, help_text="Events of it that were new.")
    duplicates = models.PositiveIntegerField(default=0, db_default=0, help_text="Events of it that were dropped.")
    body = models.BinaryField(null=True, help_text="The events as wire.encode() wrote them; gone once processed.")
    size = models.PositiveIntegerField(help_text="Bytes of the body.")
    attempts = models.PositiveSmallIntegerField(default=0, db_default=0, help_text="Times that storing it failed.")
    next_attempt_at = models.DateTimeField(
        help_text="When it became due: accepted, replayed, or after the pause of a failed attempt."
    )
    error = models.TextField(blank=True, default="", db_default="", help_text="Why the last attempt failed.")
    processed_at = models.DateTimeField(null=True)
    request_id = models.CharField(
        max_length=64, blank=True, default="", db_default="", help_text="X-Request-ID of the publish."
    )
    traceparent = models.CharField(
        max_length=55, blank=True, default="", db_default="", help_text="Its span, where there are traces (tracing.py)."
    )
    # Keys are not deleted. No index: receipts are found by their number, idempotency keys by their own index.
    api_key = models.ForeignKey(ApiKey, models.PROTECT, null=True, db_index=False, related_name="+")
    idempotency_key = models.CharField(max_length=KEY_LENGTH, null=True)
    fingerprint = models.BinaryField(
        max_length=32, null=True, help_text="SHA-256 of the body, kept where there is an idempotency key."
    )

    objects = ManyRowsQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "batches"
        indexes = [
            # Holds just what is not processed, so claiming and counting it cost the same at any number of batches.
            # The condition has no parameter because SQLite uses a partial index only where it can see it is implied.
            models.Index(
                fields=["status", "id", "received", "size", "attempts", "next_attempt_at"],
                condition=Q(processed_at__isnull=True),
                name="batch_open",
            ),
            # These pass over rows that have nothing for them: a publish writes one index page, not three.
            models.Index(fields=["processed_at"], condition=Q(processed_at__isnull=False), name="batch_processed_at"),
            # For the search in the admin. Written by the drain (12 µs a batch), not by the publish; with operators that
            # serve LIKE whatever the database's collation is.
            models.Index(
                fields=["request_id"],
                condition=Q(processed_at__isnull=False),
                opclasses=["varchar_pattern_ops"],
                name="batch_request_id",
            ),
        ]
        constraints = [
            # One publisher's idempotency keys are no other's, and all who publish without an API key are one.
            models.UniqueConstraint(
                fields=["idempotency_key"],
                condition=Q(idempotency_key__isnull=False, api_key__isnull=True),
                name="batch_idempotency_key",
            ),
            models.UniqueConstraint(
                fields=["api_key", "idempotency_key"],
                condition=Q(idempotency_key__isnull=False, api_key__isnull=False),
                name="batch_api_key_idempotency",
            ),
        ]

    def __str__(self) -> str:
        return f"batch {self.pk}"


class Event(models.Model):
    """One stored event. Its row is never changed by a later one with the same key."""

    topic = models.CharField(max_length=KEY_LENGTH)
    event_id = models.CharField(max_length=KEY_LENGTH)
    source = models.CharField(max_length=KEY_LENGTH)
    timestamp = models.DateTimeField(help_text="When it happened, as the publisher says.")
    payload = models.TextField(help_text="The JSON object exactly as it was published.")
    received_at = models.DateTimeField(help_text="When it was accepted.")
    # Batches go after their retention while events stay, so the number may outlive the row.
    batch = models.ForeignKey(Batch, models.DO_NOTHING, related_name="events", db_constraint=False)

    objects = ManyRowsQuerySet.as_manager()

    class Meta:
        unique_together = [("topic", "event_id")]
        indexes = [
            models.Index(fields=["topic", "id"], name="event_topic"),
            models.Index(fields=["source", "id"], name="event_source"),
            models.Index(fields=["received_at", "id"], name="event_received_at"),
        ]
        permissions = [("erase_event", "Can erase the payload of an event")]

    def __str__(self) -> str:
        return f"{self.topic} {self.event_id}"


class PayloadIndex(models.Model):
    """A path in payloads that has an index, so that searching by it is fast (payload_search.py)."""

    path = models.CharField(max_length=KEY_LENGTH, unique=True)
    created_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.path


class Erasure(models.Model):
    """One event whose payload was erased on request: who did it and when (erasure.py). Never deleted."""

    topic = models.CharField(max_length=KEY_LENGTH)
    event_id = models.CharField(max_length=KEY_LENGTH)
    erased_at = models.DateTimeField()
    erased_by = models.CharField(max_length=KEY_LENGTH, help_text="An API key, a user of the admin, or a command.")
    request_id = models.CharField(max_length=64, blank=True, default="")

    class Meta:
        unique_together = [("topic", "event_id")]

    def __str__(self) -> str:
        return f"{self.topic} {self.event_id}"


class TopicTotal(models.Model):
    """What was stored and dropped of a topic since the beginning."""

    topic = models.CharField(max_length=KEY_LENGTH, unique=True)
    unique = models.PositiveBigIntegerField(default=0)
    duplicates = models.PositiveBigIntegerField(default=0)
    expired = models.PositiveBigIntegerField(
        default=0, db_default=0, help_text="Unique events that are no longer listed, the removed ones among them."
    )
    removed = models.PositiveBigIntegerField(default=0, db_default=0, help_text="Unique events whose key is gone too.")
    first_seen = models.DateTimeField()
    last_seen = models.DateTimeField()

    objects = CounterQuerySet.as_manager()

    class Meta:
        verbose_name = "topic"

    def __str__(self) -> str:
        return self.topic


class TopicMinute(models.Model):
    """What was stored and dropped of a topic in one minute of acceptance, for charts."""

    topic = models.CharField(max_length=KEY_LENGTH)
    minute = models.DateTimeField()
    unique = models.PositiveBigIntegerField(default=0)
    duplicates = models.PositiveBigIntegerField(default=0)

    objects = CounterQuerySet.as_manager()

    class Meta:
        unique_together = [("minute", "topic")]

    def __str__(self) -> str:
        return f"{self.topic} {self.minute:%Y-%m-%d %H:%M}"


class PrunedQuerySet(models.QuerySet[Any]):
    """The one row."""

    def listed_after(self) -> int:
        """The id of the last event that has expired: those beyond it are listed."""
        return self.values_list("expired_through", flat=True).first() or 0


class Pruned(models.Model):
    """What retention has taken away so far, in one row (retention.py)."""

    expired_through = models.PositiveBigIntegerField(
        default=0, help_text="Events up to this id are no longer listed, and have no payload."
    )
    batches = models.PositiveBigIntegerField(default=0, help_text="Processed batches that were removed.")
    received = models.PositiveBigIntegerField(default=0, help_text="Events in them.")
    unique = models.PositiveBigIntegerField(default=0)
    duplicates = models.PositiveBigIntegerField(default=0)

    objects = PrunedQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "pruned"

    def __str__(self) -> str:
        return f"{self.batches} batches, events up to {self.expired_through}"


class SourceTotal(models.Model):
    """What was stored and dropped of a source since the beginning."""

    source = models.CharField(max_length=KEY_LENGTH, unique=True)
    unique = models.PositiveBigIntegerField(default=0)
    duplicates = models.PositiveBigIntegerField(default=0)
    differing = models.PositiveBigIntegerField(
        default=0, help_text="Duplicates that said something else than the stored event, while the log of them is on."
    )
    last_seen = models.DateTimeField()

    objects = CounterQuerySet.as_manager()

    class Meta:
        verbose_name = "source"

    def __str__(self) -> str:
        return self.source


class Minute(models.Model):
    """What was stored and dropped of all that was accepted in one minute, for charts: a day is 1,440 rows."""

    minute = models.DateTimeField(unique=True)
    unique = models.PositiveBigIntegerField(default=0)
    duplicates = models.PositiveBigIntegerField(default=0)

    objects = CounterQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.minute:%Y-%m-%d %H:%M}"


class Delay(models.Model):
    """How many of the events stored in one minute had waited about so long since they were accepted (delays.py)."""

    minute = models.DateTimeField()
    milliseconds = models.PositiveIntegerField(help_text="Upper end of the step.")
    events = models.PositiveBigIntegerField(default=0)

    objects = CounterQuerySet.as_manager()

    class Meta:
        unique_together = [("minute", "milliseconds")]

    def __str__(self) -> str:
        return f"{self.minute:%Y-%m-%d %H:%M} {self.milliseconds} ms"


class Heartbeat(models.Model):
    """When a worker or beat last said that it is there (state.py)."""

    part = models.CharField(max_length=20)
    name = models.CharField(max_length=KEY_LENGTH)
    seen_at = models.DateTimeField()

    class Meta:
        unique_together = [("part", "name")]

    def __str__(self) -> str:
        return f"{self.part} {self.name}"


class Alert(models.Model):
    """Whether an operator is needed for one cause, and whether that has been told (alerts.py)."""

    cause = models.CharField(max_length=20, unique=True)
    firing = models.BooleanField(default=False, help_text="Whether an operator is needed.")
    told = models.BooleanField(default=False, help_text="The value of firing that was sent last.")
    began_at = models.DateTimeField(help_text="When it last began.")
    changed_at = models.DateTimeField(help_text="When firing changed.")
    detail = models.TextField(blank=True, default="")
    sending_at = models.DateTimeField(null=True, help_text="When a process began to send it; null while none does.")

    def __str__(self) -> str:
        return f"{self.cause} {'firing' if self.firing else 'well'}"


class Duplicate(models.Model):
    """One dropped event: whose it was and whether its publisher reused an id for something else."""

    topic = models.CharField(max_length=KEY_LENGTH)
    event_id = models.CharField(max_length=KEY_LENGTH)
    source = models.CharField(max_length=KEY_LENGTH)
    received_at = models.DateTimeField()
    batch = models.ForeignKey(Batch, models.DO_NOTHING, related_name="dropped", db_constraint=False)
    payload_differs = models.BooleanField()
    payload = models.TextField(blank=True, default="", help_text="Kept only where it differs from the stored one.")

    objects = ManyRowsQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["topic", "event_id"], name="duplicate_key"),
            models.Index(fields=["topic", "id"], name="duplicate_topic"),
            models.Index(fields=["source", "id"], name="duplicate_source"),
            models.Index(fields=["received_at"], name="duplicate_received_at"),
            models.Index(fields=["id"], condition=Q(payload_differs=True), name="duplicate_differs"),
        ]

    def __str__(self) -> str:
        return f"{self.topic} {self.event_id}"
