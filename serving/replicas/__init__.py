"""The Ray Serve deployments: prompt encoder and image decoder."""
