"""Many images at once: `generation` and `features` by Ray `actors`, and a `client` of the endpoint."""
