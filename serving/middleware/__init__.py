"""ASGI middleware around the routes: `BodyLimit`."""
