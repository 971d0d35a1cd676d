"""The ablation study: train the recipe and its variants, judge all of them on the same prompts, write one page.

    kosmosg run ablation toyworld dest=docs     # docs/results.md: two to three hours on two cores
    kosmosg run ablation minutes                # the trend of its main rows, in ten minutes

`job` trains and judges, `variants` lists what is compared, `page` writes the results. After an interruption, the same
command resumes.
"""

from jobs.ablation.job import run

__all__ = ["run"]
