"""Benchmarks: what a model is asked, and with what its answers are compared.

`base` has the protocol and the registry; `dreambench` (subjects and prompts are in `dreambench_data`) and `coco` are
entries.
"""
