"""Templates: how a record becomes the text and images of a training sample, in `pretrain` and `instruct`."""
