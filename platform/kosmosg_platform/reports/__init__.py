"""Reports: `page` does the layout; `demo`, `benchmark` and `dataset_report` define the contents of theirs, and
`record_card` shows one record of a dataset."""
