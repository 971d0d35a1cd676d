"""Sources: each file knows one real layout of source data. `base` has the protocol and the row types."""
