"""Conditioners turn the hidden states of the language model into the condition that the U-Net attends to.

`base` has the protocol and the registry; `alignernet` is the paper's conditioner, `linear` and `mlp` are baselines.
"""
