"""`manage.py notify`: a test message to NOTIFY_URL."""

from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from events import alerts
from events.management.base import BaseCommand


class Command(BaseCommand):
    help = "Send a test message to NOTIFY_URL, the webhook for alerts."

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.NOTIFY_URL:
            raise CommandError("NOTIFY_URL is not set: set it to the webhook that should be told.")
        try:
            alerts.send("Event aggregator: this is a test message.", cause="test", status="test")
        except alerts.NotSent as error:
            raise CommandError(f"The message was not sent: {error}.") from None
        self.stdout.write(self.style.SUCCESS("The webhook took the test message."))
