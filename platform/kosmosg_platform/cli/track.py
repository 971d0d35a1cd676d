"""`kosmosg track`: sends what the tracking server has not got, and names the best model."""

from pathlib import Path
from typing import Annotated

import typer

from kosmosg.errors import ConfigError
from kosmosg_platform.console import echo, quiet_libraries

track_app = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})


@track_app.callback()
def _about() -> None:
    """Send what the tracking server has not got, and name the best model.

    \b
    Example: kosmosg track replay runs/align/0123456789ab
    """


@track_app.command("replay")
def replay_runs(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="Folder of a run; by default every run under --output.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where runs are looked for.")] = Path("runs"),
    uri: Annotated[str | None, typer.Option(help="Another tracking server than the run's.", show_default=False)] = None,
) -> None:
    """Send what runs have logged while the tracking server was away: in order, and nothing twice.

    \b
    Example: kosmosg track replay runs/instruct/0123456789ab
    """
    quiet_libraries()
    from kosmosg_platform.tracking.mlflow_run import Unreachable
    from kosmosg_platform.tracking.sender import replay
    from kosmosg_platform.tracking.spool import count_unsent, read_run

    sent, left = 0, []
    for folder in _spools(run, output):
        known = read_run(folder)
        if not count_unsent(folder):
            continue
        try:
            count = replay(folder, uri or known["uri"], known.get("attempt", ""))
        except Unreachable as error:
            left.append(f"{folder.parent} ({uri or known['uri']}: {error})")
            continue
        sent += count
        print(f"{folder.parent}: {count} sent")
        if count_unsent(folder):
            echo(f"{folder.parent}: a process is still writing to it, and sends the rest itself")
    if left:
        raise ConfigError(f"track: the tracking server does not take what these runs have logged: {'; '.join(left)}")
    if not sent:
        echo("track: nothing was left to send")


@track_app.command("promote")
def promote_model(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="NAME@ALIAS or NAME/VERSION, such as kosmosg@candidate.")
    ],
    uri: Annotated[
        str,
        typer.Option(envvar="MLFLOW_TRACKING_URI", help="The tracking server or database."),
    ] = "sqlite:///runs/mlflow.db",
) -> None:
    """Give a version of a model the alias `champion`, by which `models:/NAME@champion` finds it.

    \b
    Example: kosmosg track promote kosmosg@candidate
    """
    quiet_libraries()
    from kosmosg_platform.tracking.logged_model import promote
    from kosmosg_platform.tracking.mlflow_run import client
    from kosmosg_platform.tracking.settings import TrackingConfig

    name, separator, chosen = model.removeprefix("models:/").replace("@", "/").partition("/")
    if not separator or not chosen:
        raise ConfigError(f"promote: {model!r} names no version; give NAME@ALIAS or NAME/VERSION")
    version = promote(client(TrackingConfig(uri=uri).store(uri)), name, chosen)
    print(f"models:/{name}@champion is version {version}")


def _spools(run: Path | None, output: Path) -> list[Path]:
    from kosmosg_platform.tracking.run import FOLDER
    from kosmosg_platform.tracking.spool import RUN

    if run is None:
        return sorted(path.parent for path in output.absolute().rglob(f"{FOLDER}/{RUN}"))
    for folder in (run / FOLDER, run):
        if (folder / RUN).is_file():
            return [folder]
    raise ConfigError(f"track: {run} is not the folder of a run; there is no {FOLDER}/{RUN} in it")
