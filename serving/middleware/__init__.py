"""ASGI middleware around the routes: `body_limit`."""
