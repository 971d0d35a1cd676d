"""The HTTP side: schemas, routes, errors. It knows nothing of Ray.

A request goes through `schema` (`GenerateRequest`), `resolve` (`ResolvedRequest`), `native` and `backend` (`Backend`).
Beside them: `models`, `health`, `errors` (`ApiError`), `sse`; `http_app` puts all of them together.
"""
