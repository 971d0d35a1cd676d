"""Inference: `sampling` in one process, `generation` and `features` in batches on Ray `actors`, a `client` for the
endpoint, and `precompute` of dataset columns with its `column_encoders`.
"""
