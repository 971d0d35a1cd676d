"""Evaluation: scores of generated images, and the protocols they are measured under.

`protocol` says exactly what is measured, `benchmarks` has the prompts, `features` the feature networks, `metrics` the
scores and `statistics` the intervals; `baselines` are published numbers.
"""
