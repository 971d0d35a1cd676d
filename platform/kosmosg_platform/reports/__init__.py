"""Pages that tell what a run did: `page` lays them out, `demo` and `benchmark` say what is on theirs."""
