"""Sources: each module reads one layout of source data.

`base` has the protocol, the row types and the registry; `image_folder` reads photos, `text_lines` captions and
documents.
"""
