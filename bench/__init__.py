"""Benchmarks: the relay beside its peers, interleaved in one run, on loopback. ``python -m bench --help``.

Only ratios inside one run mean anything: load generator, relay and backend share the machine's cores.
"""
