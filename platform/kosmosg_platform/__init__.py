"""The infrastructure that every job and endpoint needs: configuration, storage, Ray, DeepSpeed, MLflow.

Shared modules: `config`, `storage`, `run_paths`, `owned_folder`, `console`, `progress`, `tracking`. Packages: `cluster`
(where things run), `datasets`, `planning`, `training`, `inference`, `evaluation`, `reports`, `cli`.
"""
