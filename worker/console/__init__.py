"""The operators' console at `/console`: pages made here, by the functions that API and CLI call."""
