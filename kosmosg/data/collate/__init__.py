"""Collates: records in, one training batch out, run in every data loader.

`base` holds what they share (`SampleKey`, `BatchRow`, padding and cutting of rows); `PretrainCollate`, `AlignCollate`
and `InstructCollate` make the batches of the three stages.
"""
