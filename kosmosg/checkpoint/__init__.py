"""Checkpoint folders: `export` writes and reads ours, `state_dict` reads the weight files of others without running
code, `digest` says which model a folder holds.
"""
