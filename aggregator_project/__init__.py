"""Wiring: settings, URLs, the Celery app, the WSGI app. The product itself is in events/."""

from aggregator_project.celery import app as celery_app

__all__ = ["celery_app"]
