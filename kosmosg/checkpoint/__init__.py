"""Checkpoint folders: `export` writes and reads ours, `publish` creates a folder atomically without ever replacing a
user's files, `state_dict` reads other people's weight files without running code, `digest` identifies the model in a
folder, `sums` tells whether it is still what was written.
"""
