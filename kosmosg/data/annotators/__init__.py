"""Annotators: they add captions, entities and masks to samples.

`base` has the protocol, the sample that they fill in, and the registry; `apply` runs one over a batch. Without weights:
`sidecar`, `told` (captions), `nouns` (entities), `grabcut` (masks). With spaCy: `noun_chunks` (entities). With a model,
loaded by `pretrained`: `blip2` (captions), `language_model` (entities), `clipseg` (masks).
"""
