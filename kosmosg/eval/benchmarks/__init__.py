"""Benchmarks: the prompts, and what the generated images are compared with.

`base` has the protocol and the registry; `dreambench` (subjects and prompts are in `dreambench_data`) and `coco` are
entries.
"""
