"""Before spending: FLOPs, memory, days and storage of a run."""
