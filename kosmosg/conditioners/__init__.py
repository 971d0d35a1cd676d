"""Conditioners: what turns the hidden states of the language model into the condition that a U-Net reads.

`base` has the protocol and the table of kinds; `alignernet` is the paper's, `linear` and `mlp` are what it was compared
with.
"""
