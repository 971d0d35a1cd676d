"""Running benchmarks: the `runner` generates images, extracts features and computes the scores of `kosmosg.eval`."""
