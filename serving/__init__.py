"""The serving application: interleaved prompts in over HTTP, images out.

`config` holds all settings of the endpoint, `app` is the Ray Serve application; its parts are in `api`, `engine`,
`replicas` and `middleware`.
"""
