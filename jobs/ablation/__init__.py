"""The ablation study: train the recipe and its variants, judge all on the same prompts, write one page.

    kosmosg run ablation toyworld dest=docs     # docs/results.md: two to three hours on two cores
    kosmosg run ablation minutes                # the direction of its main rows, in ten minutes

`job` trains and judges, `variants` are what is compared, `page` is what is written. Interrupted, the same command
resumes.
"""

from jobs.ablation.job import run

__all__ = ["run"]
