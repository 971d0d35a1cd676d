"""The layout of the `output` folder: runs, datasets and exports."""

from dataclasses import dataclass
from pathlib import Path

from kosmosg.data.records import dataset_folder
from kosmosg.errors import ConfigError
from kosmosg.hub import model_description, model_for, resolve_model
from kosmosg_platform.stores.link import follow_link
from kosmosg_platform.stores.location import told, url_of
from kosmosg_platform.stores.node_copy import bring

STAGES = ("pretrain", "align", "instruct")


@dataclass(frozen=True)
class RunPaths:
    """The tree under one output folder:

    OUTPUT/mlflow.db                     the default tracking store
    OUTPUT/build_dataset/<kind>/         dataset folders (manifest.json, data/*.parquet)
    OUTPUT/<stage>/<key>/                one training run; its key is a digest of everything that shapes the result
    OUTPUT/<stage>/<key>/experiment.yaml, metrics.jsonl, checkpoints/, samples/, export/, finished.json
    OUTPUT/<stage>/export                a link to the export of the run that finished last
    """

    output: Path

    def job(self, name: str) -> Path:
        """The folder of one job."""
        return self.output.absolute() / name

    def run(self, stage: str, key: str) -> Path:
        """The folder of one training run."""
        return self.job(stage) / key

    def dataset(self, kind: str) -> Path:
        """The default folder of a record kind, where `build_dataset` writes and training reads."""
        return self.job("build_dataset") / dataset_folder(kind)

    @property
    def tracking(self) -> str:
        """URI of the default tracking store; empty where a database cannot lie, in an object store."""
        return "" if url_of(self.output) else f"sqlite:///{self.job('mlflow.db')}"

    def export(self, stage: str) -> Path:
        """The export of the newest finished run of a stage, resolved to its real folder. Raises ConfigError."""
        link = self.job(stage) / "export"
        found = follow_link(link)
        if found is None:
            raise ConfigError(
                f"parent: {told(link)} does not exist; run `kosmosg run {stage}` with the same output, or give "
                "parent=FOLDER"
            )
        return found

    def newest_export(self) -> Path:
        """The export of the latest stage that has one. Raises ConfigError if there is none."""
        for stage in reversed(STAGES):
            if (found := follow_link(self.job(stage) / "export")) is not None:
                return found
        raise ConfigError(f"output: no finished stage under {told(self.output)}; run `kosmosg run pretrain` first")


@dataclass(frozen=True)
class ChosenModel:
    """A model that was chosen for the user, and what to tell them about it."""

    folder: Path
    name: str
    """Its name, as for `model=` and `--model`."""
    description: str
    """What it can generate; empty if unknown."""

    def __str__(self) -> str:
        return f"{self.name}, {self.description}" if self.description else self.name


def choose_model(output: Path, decoder: str, model: str | Path | None = None) -> ChosenModel:
    """The model that every command and endpoint uses: the named one, or else the first of

    1. the latest finished stage under `output`,
    2. that of the demo, under `output/demo`,
    3. the model that ships with the decoder.

    Raises:
        CheckpointError: there is no model of that name.
        ConfigError: no model is named and none of the three exists.
    """
    if model is not None:
        return _described(str(model), resolve_model(model))
    for folder in (output, output / "demo"):
        for stage in reversed(STAGES):
            link = folder / stage / "export"
            if (found := follow_link(link)) is not None:
                return _described(told(link), found)
    shipped = model_for(decoder)
    if shipped is None:
        raise ConfigError(
            f"model: no trained model under {told(output)} or {told(output / 'demo')}; name one (a folder, a URL or a "
            "Hub id), or run `make demo`"
        )
    return _described(shipped, resolve_model(shipped))


def _described(name: str, folder: Path) -> ChosenModel:
    return ChosenModel(folder, name, model_description(name, folder))


def require_dataset(folder: Path, kind: str) -> Path:
    """Returns the folder if it contains a finished dataset. Raises ConfigError or DataError with the remedy."""
    if not bring(folder / "manifest.json").is_file():
        state = "is unfinished (no manifest.json)" if folder.is_dir() else "does not exist"
        raise ConfigError(
            f"data.{kind}: {told(folder)} {state}; run `kosmosg run build_dataset toyworld` with the same output, "
            f"or give data.{kind}=FOLDER"
        )
    return folder
