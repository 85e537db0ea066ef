"""One fake upstream per slug."""
