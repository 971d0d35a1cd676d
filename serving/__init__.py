"""The endpoint.

`config` (`ServingConfig`), `app` (the Ray Serve deployments), `api` (HTTP), `engine`, `replicas`, `middleware`.
"""
