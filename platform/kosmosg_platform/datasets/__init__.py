"""Datasets: `build` creates a dataset folder from a source with the Ray Data `pipeline`; `steps` turns the
configuration into pipeline steps; `dataset` reads and writes the folder.
"""
