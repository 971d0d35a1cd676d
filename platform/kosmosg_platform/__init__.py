"""The machinery that every job and endpoint needs: configuration, storage, Ray, DeepSpeed, MLflow.

The ground floor: `config`, `storage`, `run_paths`, `owned_folder`, `console`, `tracking`. The rooms: `cluster` (where
things run), `datasets`, `planning`, `training`, `inference`, `evaluation`, `reports`, `cli`.
"""
