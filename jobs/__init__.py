"""Verbs that you submit: each module is one job, run as `python -m jobs.NAME PRESET key=value ...`."""
