"""Building blocks that the model and the conditioners share, so that neither imports the other for them.

`initialisation` of weights, `attention` with its kernels, and the `magneto` layers that are built of both.
"""
