"""Where jobs run: the Ray `session` of this process, `submit` to a cluster, the `workspace` that holds the jobs."""
