"""Batch inference: `generation` and `features` on Ray `actors`, and a `client` for the endpoint."""
