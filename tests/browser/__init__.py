"""The service as a person sees it: a real browser against `manage.py up`."""
