"""Metrics: from features to numbers, `similarity` for DreamBench and `fid` for COCO; `exact_match` of answers."""
