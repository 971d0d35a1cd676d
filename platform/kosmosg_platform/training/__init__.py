"""Training with Ray Train and DeepSpeed: from an experiment to checkpoints, metrics and an export.

In the order of a run: `TrainingExperiment` (settings), `Mixture` and `InitialModel` (what they mean), `StageRecipe`
(what a stage adds), `TrainRun` (what travels to the workers), `fit` (the driver), `Worker` (the loop), `MixtureSampler`
(which sample comes when), `Engine` (DeepSpeed), `WeightEma`, `checkpoints`, `export`.
"""
