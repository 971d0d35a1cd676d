"""Records and batches: how data is read, annotated, stored and turned into training batches.

`records` is the table of kinds with their schemas. `sources` read data, `annotators` add captions, entities and masks,
`filters` reject samples, `pipeline_rows` carry them between processes, `composition` makes records, `image_bytes`
encodes their images. `templates` turn a record into a prompt, `packing` documents into rows, `collate` both into
batches; `contact_sheet` shows records and results.
"""
