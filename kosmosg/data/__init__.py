"""Records and batches: how data is read, annotated, stored and turned into training batches.

`records` is the table of kinds with their schemas. `files` are read in parts, wherever they lie, `sources` know what
stands in them, `annotators` say what images show, `filters` which are kept. `pipeline_rows` carry them between
processes, `kept_answers` from build to build; `composition` makes records, `image_bytes` are how images stand in
them. `image_hash` knows an image again, `near_duplicates` finds copies among millions, `hash_list` is how both are
kept. `templates` turn a record into a prompt, `packing` documents into rows, `collate` all of it into batches;
`precomputed` is what frozen models have computed once for all epochs; `contact_sheet` shows records and results.
"""
