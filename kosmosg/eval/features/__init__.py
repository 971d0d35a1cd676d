"""Feature networks: `networks` (DINO, CLIP, and how weights are found), `inception` for FID, and the `preprocessing`
that published numbers were made with.
"""
