"""Export a training run as a model folder, or a model and its decoder as a diffusers pipeline.

    kosmosg run export source=runs/align/3f2a91c0d4e5 dest=early   # a run, which may be unfinished
    kosmosg run export dest=my_pipeline                            # the newest model and its decoder for diffusers
    kosmosg run export source=toyworld:instruct dest=my_pipeline   # the same for a given model, by any of its names

A run folder becomes an export folder (config.json, weights, processor). A model becomes a pipeline folder in the
diffusers layout, which `KosmosGPipeline.from_pretrained` loads. An existing folder is replaced only if it contains
such an export or pipeline and nothing else; otherwise it is left alone, with an error.
"""

from importlib import import_module
from pathlib import Path

import yaml

from jobs.experiment import Experiment, main
from kosmosg.checkpoint.export import load_export
from kosmosg.checkpoint.publish import UNET_WEIGHTS, WEIGHTS, FolderLayout, check_replaceable, publish_folder
from kosmosg.errors import ConfigError
from kosmosg.hub import resolve_model
from kosmosg.processor import CONFIG_FILE, SENTENCEPIECE_FILE
from kosmosg_platform.config import validate
from kosmosg_platform.console import echo
from kosmosg_platform.run_paths import STAGES, RunPaths
from kosmosg_platform.storage import read_json
from kosmosg_platform.tracking import Run
from kosmosg_platform.tracking.run import FOLDER
from kosmosg_platform.training.export import export
from kosmosg_platform.training.recipe import TrainRun
from kosmosg_platform.training.trainer import run_key

PIPELINE = FolderLayout(
    kind="a Kosmos-G pipeline",
    files=(
        *("model_index.json", "README.md", "scheduler/scheduler_config.json", "feature_extractor/*_config.json"),
        *(f"processor/{name}" for name in (CONFIG_FILE, SENTENCEPIECE_FILE)),
        *(f"{part}/{name}" for part in ("model", "safety_checker") for name in ("*config.json", *WEIGHTS)),
        *(f"{part}/{name}" for part in ("unet", "vae") for name in ("config.json", *UNET_WEIGHTS)),
    ),
    identity=("model_index.json", "_class_name", "KosmosGPipeline"),
)
"""What `KosmosGPipeline.save_pretrained` writes."""


def run(experiment: Experiment) -> Path:
    """Write the folder and return its path.

    Raises ConfigError or CheckpointError if the source is neither a run nor a model.
    """
    layout = RunPaths(experiment.output)
    run_folder = Path(experiment.source or "").absolute()
    if experiment.source and (run_folder / "checkpoints").is_dir():
        return export_run(run_folder, (experiment.dest or run_folder / "export").absolute())
    source = resolve_model(experiment.source) if experiment.source else layout.newest_export()
    dest = experiment.dest or layout.job("export") / "pipeline"
    return export_pipeline(source, experiment.decoder, dest.absolute())


def export_run(folder: Path, dest: Path) -> Path:
    """The newest checkpoint of the run in `folder` as an export. Raises ConfigError, CheckpointError."""
    stage, key = folder.parent.name, folder.name
    if stage not in STAGES or not (folder / "experiment.yaml").is_file():
        raise ConfigError(f"source: {folder} is not a run folder; give OUTPUT/STAGE/KEY of one of {', '.join(STAGES)}")
    settings = yaml.safe_load((folder / "experiment.yaml").read_text(encoding="utf-8"))
    experiment = validate(Experiment, settings | {"output": str(folder.parents[1])})
    recipe = import_module(f"jobs.{stage}").recipe(experiment)
    known = read_json(folder / "run.json")
    if run_key(stage, experiment, recipe.fingerprint(), known.get("resumed_from")) != key:
        raise ConfigError(
            f"source: the data, the parent or the decoder of {folder} have changed since it was trained, so its frozen "
            "parts cannot be rebuilt; put them back, or train again"
        )
    _, steps = export(TrainRun(recipe, experiment, key, Run(known["uri"], str(folder / FOLDER))), dest)
    echo(f"export: {stage} after {steps} steps in {dest}")
    return dest


def export_pipeline(source: Path, decoder: str, dest: Path) -> Path:
    """Write model and decoder as one diffusers pipeline folder. Raises CheckpointError."""
    from kosmosg import KosmosGPipeline

    check_replaceable(dest, PIPELINE)  # before gigabytes are read
    model, processor = load_export(source)
    pipe = KosmosGPipeline(model=model, processor=processor, decoder=decoder)
    publish_folder(dest, PIPELINE, pipe.save_pretrained)
    echo(f"export: pipeline in {dest}")
    return dest


if __name__ == "__main__":
    main("export", run)
