"""Where jobs run: the Ray session of this process, submission to a cluster, the workspace with the jobs."""
