"""Benchmarks from a data folder to numbers: the `runner` generates, measures and scores what `kosmosg.eval` defines."""
