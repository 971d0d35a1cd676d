"""Before spending: `flops` counts what a stage computes and keeps, `plan` says if it fits and how long it takes."""
