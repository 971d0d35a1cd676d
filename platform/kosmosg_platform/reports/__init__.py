"""Pages that tell what a run did."""
