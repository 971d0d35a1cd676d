"""The jobs: each module is one, run as `python -m jobs.NAME PRESET key=value ...`.

`plan` estimates the cost and `rehearse` simulates all workers; then come `hash_list`, `build_dataset`, `precompute`,
`pretrain`, `align`, `instruct`, `evaluate`, `generate` and `export`, in the order of a model's life cycle;
`toyworld`, `demo` and `ablation` belong to the toy world. `experiment` holds all settings of a run and the entry
point that all jobs share; `settings` says which settings each job reads, `settings_page` documents them, and
`stored_results` sends what jobs write to an object store.
"""

import sys

# `python -m jobs.JOB --help` is answered here, before the job's own slow imports (torch, Ray). While Python is still
# looking for the module of `-m`, argv[0] is "-m".
if sys.argv[:1] == ["-m"]:
    from jobs.settings import answer_help

    answer_help(sys.orig_argv)
