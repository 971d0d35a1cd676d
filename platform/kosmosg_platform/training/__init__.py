"""Training with Ray Train and DeepSpeed, from settings to an export.

What is trained: `recipe` (the interface of a job's recipe), `stage_recipe` (what the stages share), `initial_model`,
`mixture`, `columns`, `sampler`, `dataloader`, `replacement` (of samples that cannot be used), `held_out` (records to
validate on), `lr_schedule`. How: `trainer` on the driver, `ray_trainer` around Ray Train's, `worker_entry` and `loop`
on every worker, `engine` around DeepSpeed, `engine_config`, `checkpoints`, `saving` (of them), `resume_point`, `ema`,
`validation`, and `notices` from workers to the user. In an object store: `stored_checkpoints`, `uploads` (of them,
while training goes on). What goes wrong: `stability`, `skipped_data`, `stopping`, `heartbeat` and `stall_watch`
(workers that hang), `worker_count` (nodes that are lost), `failure_count` (how many of them). The results: `metrics`,
`changed_settings`, `sample_images`, `export`, `model_card`; `consumed` tells which records a step has seen.
"""
