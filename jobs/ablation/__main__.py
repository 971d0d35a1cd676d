"""`python -m jobs.ablation`."""

from jobs.ablation.job import run
from jobs.experiment import main

if __name__ == "__main__":
    main("ablation", run)
