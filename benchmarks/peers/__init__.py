"""The peers of bench_peers.py, ourselves among them, each behind the same few methods."""
