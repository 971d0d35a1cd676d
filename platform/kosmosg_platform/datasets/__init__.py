"""Datasets: `build` makes a folder from a source, with what `steps` makes of the configuration.

`listing` deals the source's items to shards, `chunks` is what is under way of a shard, `pipeline` the Ray Data graph
that chunks go through, `answers` a step of it with what models have said before; `dataset` reads and writes the folder
(`shard_files` and `parquet_footer` with little memory), `precomputed` finds the columns beside it, `statistics`
measures it, `kept_steps` removes answers that no build will ask for, `spent` measures what steps cost, and `lineage`
traces a record back to its source. `hash_list` finds copies within a source. `publishing` turns receipts into a
manifest.
"""
