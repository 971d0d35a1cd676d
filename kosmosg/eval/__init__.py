"""Scores: what a generated picture is worth, and under which protocol."""
