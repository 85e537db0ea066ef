"""Everything that does I/O: the pipeline, the store, the control plane and the commands."""
