"""Annotators: who says what an image shows.

`base` has the protocol, the sample that annotators fill in and the registries; `apply` runs one over samples. Captions
come from `sidecar` or `blip2`, entities from `nouns` or `language_model`, masks from `grabcut` or `clipseg`; those with
weights share `pretrained`. `table` carries samples between steps.
"""
