"""Building datasets with Ray Data, and reading what was built."""
