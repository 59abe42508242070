"""The real service on real engines: several web processes and workers, and engines that fail under load."""
