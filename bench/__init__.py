"""The benchmark: `python -m bench` measures the service end to end against what the machine can do."""
