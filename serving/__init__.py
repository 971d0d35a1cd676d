"""The application that you deploy: interleaved prompts in over HTTP, images out.

`config` is the endpoint as one value, `app` the Ray Serve application; `api`, `engine`, `replicas` and `middleware` are
its rooms.
"""
