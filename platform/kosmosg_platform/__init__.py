"""The infrastructure that every job and endpoint needs: configuration, storage, Ray, DeepSpeed, MLflow.

Shared modules: `config`, `storage`, `run_paths`, `owned_folder`, `faults` (of disks and stores, told in a sentence),
`console`, `progress`. Packages: `cluster` (where things run), `stores` (object stores), `tracking`, `datasets`,
`planning`, `training`, `inference`, `evaluation`, `reports`, `cli`.
"""

from kosmosg.hub import REGISTRIES

REGISTRIES["models"] = "kosmosg_platform.tracking.registry:fetch_model"
