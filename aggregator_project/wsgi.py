"""The WSGI app that gunicorn serves."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aggregator_project.settings")

application = get_wsgi_application()

from events.checks import exit_on_errors  # noqa: E402  (needs Django set up)

exit_on_errors()
