"""Scores: what a generated image is worth, and under which protocol.

`protocol` says exactly what is measured, `benchmarks` what is asked, `features` what networks see, `metrics` turn that
into numbers and `statistics` into intervals; `baselines` are published numbers.
"""
