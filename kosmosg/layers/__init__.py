"""Building blocks shared by the model and the conditioners, so that neither has to import the other.

`initialisation` of weights, `attention` with its kernels, and the `magneto` layers that are built from both.
"""
