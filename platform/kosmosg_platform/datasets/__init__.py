"""Datasets: `build` makes a folder from a source, by the Ray Data `pipeline`, with what `steps` makes
of the configuration; `dataset` reads and writes the folder.
"""
