"""Sources: each module reads one layout of source data.

`base` has the protocol, the item and row types and the registry; `files` reads local folders and object stores alike.
`image_folder` reads photos, `webdataset` tars of captioned images, `img2dataset` what that tool downloaded,
`open_images` Open Images, `text_lines` captions and documents.

Sources of images share `image_rows` (bytes become rows), `captioned_files` (image, text and JSON of one sample),
`tar_index` and `tar_samples` (what stands where in a tar), `download_shards` (img2dataset's books), `download_folders`
and `download_tables` (two of its forms), `csv_blocks` (large CSV files). Of Open Images `open_images_files` knows which
file is what, `open_images_index` where each image is, `open_images_labels` what it shows.
"""
