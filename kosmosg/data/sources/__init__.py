"""Sources: each module reads one layout of source data; files and formats are read by `kosmosg.data.files`.

`base` has the protocol, the item and row types and the registry. `image_folder` reads photos, `webdataset` tars of
captioned images, `img2dataset` what that tool downloaded, `open_images` Open Images, `caption_table` tables of captions
with images, `instruct_pix2pix` edits, `interleaved` web pages with images, `text_corpus` documents.

Shared by sources of images: `image_rows` (bytes become rows), `stored_image` (bytes become what a record holds),
`captioned_files` (image, text and JSON of one sample), `download_shards` (img2dataset's books), `download_folders` and
`download_tables` (two of its forms). Of Open Images `open_images_files` knows which file is what, `open_images_index`
where each image is, `open_images_labels` what it shows. Shared by sources of tables: `tables` (rows of any form),
`caption_columns` and `page_layouts` (which column is what), `scores` (in metadata), `page_images` (of pages).
"""
