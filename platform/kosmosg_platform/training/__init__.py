"""Training with Ray Train and DeepSpeed, from settings to an export.

What is trained: `recipe` (what a job hands over), `stage_recipe` (what the stages share), `initial_model`, `mixture`,
`sampler`, `dataloader`, `lr_schedule`. How: `trainer` on the driver, `loop` on every worker, `engine` around DeepSpeed,
`checkpoints`, `ema`. What is left: `metrics`, `sample_images`, `export`, `model_card`.
"""
