"""Server-sent events, as the HTML standard writes them."""

import json
from typing import Any


def server_sent_event(event: str, data: dict[str, Any]) -> str:
    """One event with JSON data, the empty line that ends it included."""
    return f"event: {event}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
