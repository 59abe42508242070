"""The service's settings, and two more addresses on the same server: one that does nothing, and the design replaced."""

from aggregator_project.settings import *  # noqa: F403

ROOT_URLCONF = "bench.urls"
CELERY_IMPORTS = ["bench.replaced"]
