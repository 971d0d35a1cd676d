"""Reports of runs: `page` does the layout, `demo` and `benchmark` define the contents of theirs."""
