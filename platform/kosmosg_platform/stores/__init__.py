"""Folders in an object store (s3://, gs://, hdfs://), for jobs that work on local files.

`location`    settings that take a folder or a URL, and the local copy that stands for a URL
`bucket`      list, read, write and remove what lies under a URL, through pyarrow; patient with a store that is away
`node_copy`   bring single files from a store and send them there; nothing to do for a folder on a disk
`folder_sync` keep the small files of a folder the same on the nodes and in the store
`link`        which export is a stage's newest
`shard_cache` large files of known content, kept on the node up to a limit
"""
