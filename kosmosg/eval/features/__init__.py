"""Feature networks: `base` (their table, and how weights are found), `dino`, `clip`, `inception` for FID, and the
`preprocessing` that published numbers were made with.
"""
