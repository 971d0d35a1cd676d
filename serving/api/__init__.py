"""The HTTP side, which knows nothing of Ray: `schema` of requests and answers and how they `resolve`; the routes
`native`, `models` and `health` over a `backend`, streamed by `sse`, refused by `errors`; `http_app` puts them together.
"""
