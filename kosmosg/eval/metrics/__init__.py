"""Metrics: from features or answers to numbers."""
