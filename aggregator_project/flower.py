"""Flower's configuration: `celery -q -A aggregator_project flower --conf=aggregator_project/flower.py`."""

# Not `import logging`: every name here that is one of Flower's options sets it, and `logging` is one.
from logging import getLogger
from logging.config import dictConfig

from django.conf import settings
from tornado.ioloop import IOLoop

from aggregator_project.stack import address_of

address = settings.BIND
port = settings.FLOWER_PORT
basic_auth = settings.FLOWER_BASIC_AUTH
#: What a task did stands in its result, or where a batch failed, in its exception.
tasks_columns = "name,state,result,exception,received,runtime"
#: What it keeps in memory. It is for looking at what happens now; the books are in /stats and the admin.
max_tasks = 1_000
max_workers = 100
persistent = False
#: Seconds after which a worker that is gone is no longer listed.
purge_offline_workers = 60

# Tornado has set up its own lines by now; this replaces them.
dictConfig(settings.LOGGING)
# Runs as soon as the loop does, and by then Flower listens.
IOLoop.current().add_callback(getLogger("flower").info, "ready on %s", address_of(settings.FLOWER_PORT))
