"""Scores: what a generated image is worth, and under which protocol."""
