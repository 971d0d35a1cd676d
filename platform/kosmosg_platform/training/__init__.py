"""Training with Ray Train and DeepSpeed: from an experiment to checkpoints, metrics and an export."""
