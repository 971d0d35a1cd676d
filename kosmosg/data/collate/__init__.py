"""Collate functions, which turn records into a training batch in every data loader.

`base` has the shared parts; `pretrain`, `align` and `instruct` are those of the three stages.
"""
