"""HTTP: each view reads a request, calls one function of events/, and turns its result into an answer."""
