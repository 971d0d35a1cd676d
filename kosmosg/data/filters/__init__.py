"""Filters: they reject samples, with a reason.

`base` has the protocol and the registry. None of these needs weights: `image_size` (small or narrow images),
`caption_length` (too few or too many words), `blur` (images without sharp edges).
"""
