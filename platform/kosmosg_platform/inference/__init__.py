"""Generating images and measuring features at scale with Ray actors, and calling an endpoint."""
