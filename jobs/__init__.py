"""Verbs that you submit: each module is one job, run as `python -m jobs.NAME PRESET key=value ...`.

`plan` before paying; then `build_dataset`, `pretrain`, `align`, `instruct`, `evaluate`, `generate` and `export`, in the
order of a model's life; `toyworld`, `demo` and `ablation` show it in the toy world. `experiment` is the whole of a run
as one value, and the way in that all share; `settings` says which settings each job reads, `settings_page`
writes them down.
"""

import sys

# `python -m jobs.JOB --help` is answered here, before the job's own imports (torch, Ray) cost their seconds. While
# Python looks for the module of `-m`, that is what stands in argv[0].
if sys.argv[:1] == ["-m"]:
    from jobs.settings import answer_help

    answer_help(sys.orig_argv)
