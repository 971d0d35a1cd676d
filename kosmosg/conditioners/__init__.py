"""Conditioners: what turns the hidden states of the language model into the condition that a U-Net listens to.

`base` has the table of kinds; `alignernet` is the paper's, the others are what it was compared with.
"""
