"""Benchmarks: what a model is asked, and with which reference images and captions."""
