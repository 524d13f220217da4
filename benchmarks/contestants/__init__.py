"""One file a family of contestants, each run in a process of its own.

The protocol: ``python -m benchmarks.contestants.NAME WORKLOAD OPTION…`` does the work and prints one JSON object. Its
``figures`` are what was measured; its ``facts`` are what can be checked: messages stored and handled, spans exported,
lines logged. See ``trial.py``.
"""
