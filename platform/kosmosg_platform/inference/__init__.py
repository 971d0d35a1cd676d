"""Inference: `sampling` in one process, `generation` and `features` in batches on Ray `actors`, and a `client` for the
endpoint."""
