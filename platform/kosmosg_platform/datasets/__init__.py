"""Datasets: `build` makes a folder from a source, by the Ray Data `pipeline` with the steps that `annotation`
configures; `dataset` reads and writes the folder.
"""
