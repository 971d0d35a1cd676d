"""Sources: each module reads one layout of source data.

`base` has the protocol, the item and row types and the registry; `files` reads local folders and object stores alike.
`image_folder` reads photos, `webdataset` tars of captioned images, `img2dataset` what that tool downloaded,
`open_images` Open Images, `caption_table` tables of captions with images, `instruct_pix2pix` edits, `interleaved` web
pages with images, `text_corpus` documents.

Sources of images share `image_rows` (bytes become rows), `captioned_files` (image, text and JSON of one sample),
`tar_index` and `tar_samples` (what stands where in a tar), `download_shards` (img2dataset's books), `download_folders`
and `download_tables` (two of its forms), `csv_blocks` (large CSV files). Of Open Images `open_images_files` knows which
file is what, `open_images_index` where each image is, `open_images_labels` what it shows.

Sources of tables share `tables` (rows of any form), which reads lines with `line_ranges`, CSV with `csv_records` and
Parquet with `parquet_ranges`; `caption_columns` and `page_layouts` know layouts, `scores` the scores in metadata,
`page_images` finds the images of pages, `stored_image` makes images fit for records, `json_stream` reads long arrays,
`store_file` tells a store that is away from a file that is damaged.
"""
