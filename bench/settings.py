"""The service's settings, and two more addresses on the same server: one that does nothing, and the design replaced."""

from aggregator_project.settings import *  # noqa: F403

ROOT_URLCONF = "bench.urls"
if PART == "worker":  # noqa: F405
    # Flower would import it as well, without the apps that it needs.
    CELERY_IMPORTS = ["bench.replaced"]
