"""The HTTP layer, independent of Ray: `schema` of requests and responses, `resolve` for defaults and limits; the routes
`native`, `models` and `health` over a `backend`; `sse` for streaming, `errors`; `http_app` puts them together.
"""
