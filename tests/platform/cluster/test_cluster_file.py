"""cluster.yaml is one that Ray's autoscaler accepts, and it holds the paper's 256 GPUs."""

from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).resolve().parents[3] / "cluster.yaml"


def validated(config: dict[str, object]) -> dict[str, object]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, object] = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_cluster_file() -> None:
    config = validated(yaml.safe_load(CLUSTER.read_text()))
    gpu = config["available_node_types"]["gpu"]  # type: ignore[index]
    assert gpu["max_workers"] * gpu["resources"]["GPU"] == 256


def test_ray_would_refuse_a_typing_error() -> None:
    """Shows that the test above can fail."""
    config = yaml.safe_load(CLUSTER.read_text())
    config["max_wokers"] = 32
    with pytest.raises(Exception, match="max_wokers"):
        validated(config)
