"""Benchmarks from a data folder to numbers: what is asked, generated, measured and compared.

Images and features come from `kosmosg_platform.inference`; what is measured is defined in `kosmosg.eval`.
"""
