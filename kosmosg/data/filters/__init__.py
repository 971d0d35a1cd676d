"""Filters: which samples are kept. They say nothing about an image, they only turn it down, with the reason.

`base` has the protocol and the registry. None of these needs weights: `image_size` (small or narrow images),
`caption_length` (too few or too many words), `blur` (images without sharp edges).
"""
