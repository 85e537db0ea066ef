"""Throughput and latency: `make bench`, `make bench-quick`, `python -m tests.bench --help`."""
