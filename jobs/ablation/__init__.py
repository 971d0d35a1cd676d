"""The ablation study: train the recipe and what it is compared with, judge all on the same prompts, write one page."""

from jobs.ablation.job import run

__all__ = ["run"]
