"""Building blocks shared by the model and the conditioners, so that neither has to import the other.

`initialisation` of weights, `dropout` by sample, `attention` with its kernels, and `magneto` layers built from them.
"""
