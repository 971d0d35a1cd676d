"""Templates: how one record becomes the text and images that a training stage reads.

`InstructTemplates` gives an `Example` (prompt and target image) for stage 3, `PretrainTemplates` the parts of a row
for stage 1.
"""
