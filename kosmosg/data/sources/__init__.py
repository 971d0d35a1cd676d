"""Sources: each module reads one layout of source data.

`base` has the protocol, the item and row types and the registry; `files` reads local folders and object stores alike.
`image_folder` reads photos, `text_lines` captions and documents.
"""
