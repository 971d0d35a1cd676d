"""Conditioners: what turns the hidden states of the language model into the condition of the U-Net.

`base` has the protocol (`Conditioner`) and the table of kinds (`CONDITIONERS`); one module each: `AlignerNet`, which is
the paper's, and what it was compared with, `LinearConditioner` and `MLPConditioner`.
"""
