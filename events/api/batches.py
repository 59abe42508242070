"""GET /batches/{id}: the receipt of one publish."""

from datetime import datetime

from drf_spectacular.utils import extend_schema
from msgspec import Struct
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from events import keys
from events.api import schema
from events.api.doors import GuardedView, key_of
from events.api.parameters import read_parameters
from events.models import Batch


class Receipt(Struct):
    """The result of a publish. unique and duplicates are null until it is processed."""

    batch_id: int
    status: str
    received: int
    unique: int | None
    duplicates: int | None
    accepted_at: datetime
    processed_at: datetime | None
    attempts: int
    error: str | None


def location(batch: Batch) -> str:
    """Where the receipt of a batch is."""
    return f"/batches/{batch.pk}"


def receipt(batch: Batch) -> Receipt:
    """The receipt of a batch."""
    processed = batch.status == Batch.Status.PROCESSED
    return Receipt(
        batch_id=batch.pk,
        status=str(batch.status),
        received=batch.received,
        unique=batch.unique if processed else None,
        duplicates=batch.duplicates if processed else None,
        accepted_at=batch.accepted_at,
        processed_at=batch.processed_at,
        attempts=batch.attempts,
        error=batch.error or None,
    )


class BatchView(GuardedView):
    """Show the receipt of a publish."""

    # A publisher may read the receipts of its own publishes, whatever its scope.
    scope = "any"

    @extend_schema(**schema.BATCH)
    def get(self, request: Request, batch_id: int) -> Response:
        read_parameters(request.query_params)
        batch = Batch.objects.defer("body").filter(pk=batch_id).first() if batch_id < 2**63 else None
        # A receipt that is not for this key is as none.
        key = key_of(request)
        if batch is None or (key and not keys.may_see_receipt(key, batch)):
            raise NotFound(f"There is no batch {batch_id}.")
        return Response(receipt(batch))
