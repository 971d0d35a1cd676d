"""Where jobs run: the Ray `session` of this process, a check that its `resources` suffice, `submit` to a cluster, the
`workspace` that contains the jobs."""
