"""Fake upstreams, as strict as the real ones document: for demo, tests, bench and trying out."""
