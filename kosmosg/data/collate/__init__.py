"""Collate functions, run in every data loader: records in, one training batch out.

`base` is what they share; `pretrain`, `align` and `instruct` are those of the three stages.
"""
