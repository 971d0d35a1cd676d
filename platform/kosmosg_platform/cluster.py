"""Where a run runs: the section `scale`, and the Ray cluster that all jobs of a process share."""

from pydantic import Field

from kosmosg_platform.config import Section


class ScaleConfig(Section):
    """Workers and what each may use."""

    workers: int = Field(default=1, ge=1)
    """Training processes; one per GPU when there are GPUs."""
    use_gpu: bool = False
    """Give every worker one GPU."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores, and threads, of each worker."""
    address: str | None = None
    """Ray cluster to join (`auto`, `ray://host:port`); null starts one here, or uses RAY_ADDRESS when it is set."""
    max_failures: int = Field(default=2, ge=-1)
    """How often lost workers are replaced and the run goes on from its last checkpoint; -1 means always."""
