"""Where jobs run: the Ray `session` of this process, a check that its `resources` suffice, `submit` to a cluster, the
`workspace` that contains the jobs, a `reaper` of what a killed driver leaves behind."""
