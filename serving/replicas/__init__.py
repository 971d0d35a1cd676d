"""The Ray Serve deployments: `prompt_encoder` and `image_decoder`."""
