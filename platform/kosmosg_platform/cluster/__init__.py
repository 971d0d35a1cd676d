"""Where jobs run: the Ray `session` of this process and whether its `resources` suffice, `submit` to a
cluster, the `workspace` that holds the jobs."""
