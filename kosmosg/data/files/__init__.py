"""Files as sources find them: in local folders or object stores, damaged or not, and formats that are read in parts.

`source_files` lists and opens files, `store_file` asks a store that is away again: it is no damaged file. Text:
`line_ranges` (byte ranges that begin at lines), `csv_records` and `csv_blocks` (records of CSV one by one, or in blocks
of columns), `json_stream` (one large list). `parquet_ranges` reads rows of Parquet; `tar_index` and `tar_samples` know
what stands where in a tar. Nothing here knows what the content means: that is what `kosmosg.data.sources` are for.
"""
