"""Records and batches: how a prompt is stored, read, composed and collated."""
