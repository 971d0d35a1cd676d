"""Cost estimates: `flops` counts what a stage computes and stores, `plan` says if it fits and how long it takes."""
