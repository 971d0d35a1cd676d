"""Checkpoint folders: `export` writes and reads ours, `publish` makes a folder appear whole and replaces nothing of a
user's, `state_dict` reads the weight files of others without running code, `digest` says which model a folder holds.
"""
