"""Templates: how one record becomes the text and images that a training stage reads, in `pretrain` and `instruct`."""
