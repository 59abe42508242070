"""The image and both Compose files, built and run for real: `python -m tests.docker`, which is `make docker-test`."""
