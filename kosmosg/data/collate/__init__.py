"""Collate functions: records in, one training batch out, run in every data loader."""
