"""Cost estimates: `flops` counts what a stage computes and stores, `memory` what a worker holds, `plan` says if it fits
and how long it takes, `build_plan` says that of a dataset build, from what a small one has measured; `rehearsal` goes
through a stage with all of its workers simulated."""
