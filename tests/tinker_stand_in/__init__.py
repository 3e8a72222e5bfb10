"""A stand-in for the Tinker API on loopback. `serve.py` starts it; its --help lists the faults that it can play."""
