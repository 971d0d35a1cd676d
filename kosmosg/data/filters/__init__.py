"""Filters: they reject samples, with a reason.

`base` has the protocols and the registry. Without weights: `image_size` (small or narrow images), `blur` (images
without sharp edges), `caption_length` (too few or too many words), `caption_markup` (what is no caption),
`function_words` (captions in other languages), `mask_coverage` and `mask_agreement` (what the segmenter found),
`contaminated` (images of an evaluation set), `duplicate` (copies). With a model: `clip_score` (does the caption fit),
`aesthetic`, both on `clip_embedder`, and `classifier` (NSFW, watermarks).
"""
