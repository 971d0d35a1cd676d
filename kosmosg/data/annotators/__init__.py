"""Annotators: who says what an image shows. `base` has the protocol and the sample that they fill in."""
