"""The control plane over HTTP: v4 as documented, and /ops/v1 for what operators need beyond it."""
