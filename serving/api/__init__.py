"""The HTTP side: schemas, routes, errors. It knows nothing of Ray."""
