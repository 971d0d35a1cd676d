"""The Kubernetes manifests: their own schema accepts them, and they say what the rest of the project says.

The custom resource definitions of KubeRay are megabytes, so they are not kept here. To check against them:
    KUBERAY_CRDS=kuberay/ray-operator/config/crd/bases pytest tests/platform/cluster/test_kuberay.py
"""

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

ROOT = Path(__file__).resolve().parents[3]
MANIFESTS = sorted((ROOT / "platform" / "infra" / "kuberay").glob("*.yaml"))
CLUSTER_OF = {"RayCluster": ("spec",), "RayJob": ("spec", "rayClusterSpec"), "RayService": ("spec", "rayClusterConfig")}


def manifest(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def cluster(content: dict[str, Any]) -> dict[str, Any]:
    for key in CLUSTER_OF[content["kind"]]:
        content = content[key]
    return content


def test_there_is_one_for_each_kind() -> None:
    assert {manifest(path)["kind"] for path in MANIFESTS} == set(CLUSTER_OF)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_ray_is_the_pinned_one_and_asks_for_a_token(path: Path) -> None:
    spec = cluster(manifest(path))
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert "/mnt/kosmosg" in {mount["mountPath"] for mount in container["volumeMounts"]}
            assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_jobs_entrypoint_is_a_job_with_settings_that_it_reads() -> None:
    from jobs.experiment import from_arguments

    (path,) = (path for path in MANIFESTS if manifest(path)["kind"] == "RayJob")
    python, option, module, *arguments = shlex.split(manifest(path)["spec"]["entrypoint"])
    assert (python, option) == ("python", "-m")
    experiment = from_arguments(module.removeprefix("jobs."), arguments)
    gpus = sum(
        group["maxReplicas"] * group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
        for group in cluster(manifest(path))["workerGroupSpecs"]
    )
    assert experiment.scale.workers == gpus
    assert experiment.output.is_relative_to("/mnt/kosmosg")


def test_the_services_application_is_one_that_serve_accepts() -> None:
    from ray.serve.schema import ServeDeploySchema

    from kosmosg_platform.config import validate
    from serving.config import ServingConfig

    (path,) = (path for path in MANIFESTS if manifest(path)["kind"] == "RayService")
    (application,) = ServeDeploySchema.model_validate(
        yaml.safe_load(manifest(path)["spec"]["serveConfigV2"])
    ).applications
    assert application.import_path == "serving.app:build"
    validate(ServingConfig, application.args)


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="needs KUBERAY_CRDS, the folder of KubeRay's definitions")
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kuberays_definition_accepts_it(path: Path) -> None:
    import jsonschema

    content = manifest(path)
    definitions = map(yaml.safe_load, (one.read_text() for one in Path(os.environ["KUBERAY_CRDS"]).glob("*.yaml")))
    (definition,) = (one for one in definitions if one["spec"]["names"]["kind"] == content["kind"])
    (version,) = (one for one in definition["spec"]["versions"] if f"ray.io/{one['name']}" == content["apiVersion"])
    schema = _closed(version["schema"]["openAPIV3Schema"])
    jsonschema.validate(content, schema)


def _closed(schema: Any) -> Any:
    """Kubernetes drops unknown fields silently; here they are errors. And an integer or a string stands for either."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: _closed(value) for key, value in schema.items()}
    if made.get("type") == "object" and "properties" in made and isinstance(made["properties"], dict):
        names = made["properties"].keys()
        if names & {"kind", "apiVersion"} == {"kind", "apiVersion"} and "metadata" in names:
            made["properties"] = {**made["properties"], "metadata": {"type": "object"}}
        made.setdefault("additionalProperties", False)
    return made
