"""The command `kosmosg` and its subcommands.

Imports happen inside the subcommands, so that help is printed at once. User errors end with one sentence on standard
error and exit code 2; all other errors keep their traceback.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

import kosmosg
from kosmosg.errors import KosmosGError
from kosmosg_platform.cli.completion import (
    JobCommand,
    keep_the_cursor_behind_equals_signs,
    offer_endpoint_presets,
    offer_jobs,
    offer_words,
)
from kosmosg_platform.cli.trace import trace
from kosmosg_platform.cli.track import track_app
from kosmosg_platform.cluster import workspace
from kosmosg_platform.console import echo, echo_error, quiet_libraries

keep_the_cursor_behind_equals_signs()
HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, context_settings=HELP)

Job = Annotated[str, typer.Argument(metavar="JOB", help="The job, one of the list below.", autocompletion=offer_jobs)]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PRESET KEY=VALUE",
        help="A preset (a name, or a YAML file), then settings; `kosmosg run JOB -h` lists those of a job.",
        show_default=False,
        autocompletion=offer_words,
    ),
]
Address = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, such as http://head:8265.")
]
# Everything after the first word, `--help` included, belongs to the program that is started.
PASS_ON = {"allow_interspersed_args": False, "ignore_unknown_options": True, **HELP}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry of the console script; ends the process."""
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="kosmosg", standalone_mode=False)
    except typer.TyperException as error:
        echo_error("kosmosg", f"{error.format_message().rstrip('.')}; see `kosmosg --help`")
        sys.exit(error.exit_code)
    except KosmosGError as error:
        echo_error("kosmosg", error)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Kosmos-G: train, follow and serve in-context image generation.

    \b
    Example: kosmosg run demo toyworld
    """
    if version:
        print(f"kosmosg {kosmosg.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command(cls=JobCommand, context_settings=PASS_ON)
def run(job: Job, words: Words = None) -> None:
    """Run a job on this machine (the same as `python -m jobs.JOB`).

    \b
    Example: kosmosg run align toyworld train.steps=200 scale.workers=2
    """
    root = workspace.find()
    workspace.require_job(root, job)
    workspace.execute(root, f"jobs.{job}", words or [])


@app.command(cls=JobCommand)
def submit(
    job: Job,
    address: Address,
    words: Words = None,
    identifier: Annotated[
        str | None,
        typer.Option(
            "--id", help="Name of the submission; a name never runs twice. Follows from the command if left out."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the log until the job ends.")] = True,
) -> int:
    """Submit a job to a Ray cluster and follow it.

    The same command again follows the job that is running, and starts no second one. If the connection breaks or the
    head is restarted, it goes on; a job that the head has lost is submitted again and resumes from its checkpoints.
    Returns the job's exit code; 130 when the job was stopped.

    \b
    Example: kosmosg submit instruct gpu output=/shared/runs --address http://head:8265 --id instruct-1
    """
    from kosmosg_platform.cluster.submit import Cluster

    root = workspace.find()
    workspace.require_job(root, job)
    cluster = Cluster(address)
    name = cluster.submit(root, job, words or [], identifier)
    if not wait:
        print(name)
        return 0
    return cluster.follow(name, again=lambda: cluster.submit(root, job, words or [], name))


Identifier = Annotated[str, typer.Argument(metavar="ID", help="The submission's name, as `submit` printed it.")]


@app.command()
def status(
    identifier: Annotated[str | None, typer.Argument(metavar="ID", help="One submission; all by default.")] = None,
    address: Address = "http://127.0.0.1:8265",
) -> None:
    """Show the state of submitted jobs.

    \b
    Example: kosmosg status instruct-1 --address http://head:8265
    """
    from kosmosg_platform.cluster.submit import Cluster

    for line in Cluster(address).status(identifier):
        print(line)


@app.command()
def logs(
    identifier: Identifier,
    address: Address = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the job ends.")] = False,
) -> int:
    """Print the log of a submitted job.

    With --follow it returns the job's exit code.

    \b
    Example: kosmosg logs instruct-1 --follow --address http://head:8265
    """
    from kosmosg_platform.cluster.submit import Cluster

    cluster = Cluster(address)
    if follow:
        return cluster.follow(identifier)
    print(cluster.log(identifier), end="")
    return 0


@app.command()
def stop(identifier: Identifier, address: Address = "http://127.0.0.1:8265") -> None:
    """Stop a submitted job and wait until it has ended.

    \b
    Example: kosmosg stop instruct-1 --address http://head:8265
    """
    from kosmosg_platform.cluster.submit import Cluster

    print(Cluster(address).stop(identifier))


# Its `--help` is that of the job, which lists the settings a plan depends on.
@app.command(context_settings=PASS_ON, add_help_option=False)
def plan(words: Words = None) -> None:
    """Estimate memory, FLOPs, days and storage of a training.

    \b
    Example: kosmosg plan paper scale.workers=64
    """
    workspace.execute(workspace.find(), "jobs.plan", words or [])


@app.command(context_settings=PASS_ON, add_help_option=False)
def rehearse(words: Words = None) -> None:
    """Simulate all workers of a training: placement, samples, checkpoints, messages.

    \b
    Example: kosmosg rehearse paper
    """
    workspace.execute(workspace.find(), "jobs.rehearse", words or [])


@app.command()
def serve(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PRESET KEY=VALUE",
            help="A preset of serving/presets (a name, or a YAML file), then settings of the endpoint.",
            show_default=False,
            autocompletion=offer_endpoint_presets,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 means all interfaces.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="Ray cluster to deploy on; by default one is started here."),
    ] = None,
) -> None:
    """Deploy the endpoint and keep it running until Ctrl-C.

    \b
    Example: kosmosg serve toyworld model=runs/demo/instruct/export --port 8000
    """
    options = ["--host", host, "--port", str(port), *(["--address", address] if address else [])]
    workspace.execute(workspace.find(), "serving", [*(words or []), *options])


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to generate; each <i> stands for an image.")],
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="An image file; repeat it for each <i>, in order.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; -1, -2 ... for several.")] = Path(
        "out.png"
    ),
    url: Annotated[str | None, typer.Option(help="Ask this endpoint; no model is loaded here.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="`toyworld:STAGE`, a folder, a URL or a Hub id; by default the furthest stage under ./runs or "
            "./runs/demo, else the model that ships."
        ),
    ] = None,
    decoder: Annotated[
        str, typer.Option(help="`toyworld`, or a folder or Hub id of a Stable Diffusion pipeline.")
    ] = "toyworld",
    n: Annotated[int, typer.Option("-n", help="Number of images.", min=1)] = 1,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", min=1)] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 turns it off.")] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt: what the image should not show.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; by default the decoder's size.")] = None,
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal images.", min=0)] = None,
) -> None:
    """Generate images from a prompt of text and images.

    In this process, or through an endpoint with --url.

    \b
    Example: kosmosg generate "<i> and <i> at sea" --image cat.png --image ball.png -o out.png
    """
    from kosmosg_platform.cli.generate import GenerateOptions, check_output, generate_local, generate_remote, write

    check_output(output)
    options = GenerateOptions(prompt, tuple(image or ()), n, steps, guidance, negative, size, seed)
    result = generate_remote(options, url) if url else generate_local(options, model, decoder)
    for path in write(result.images, output):
        print(path)
    echo(f"seed {result.seed}, {result.seconds:.1f} s", "dim")


@app.command("import")
def import_(
    kind: Annotated[
        Literal["reference", "kosmos2"], typer.Argument(metavar="reference|kosmos2", help="Layout of SRC.")
    ],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The .pt file, or the folder of microsoft/kosmos-2.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="sentencepiece.bpe.model; by default the one beside the weights.")
    ] = None,
    vision: Annotated[
        Path | None, typer.Option(help="CLIP weights, for a reference file without a vision tower.")
    ] = None,
) -> None:
    """Convert published weights to this library's folder format.

    \b
    Example: kosmosg import reference checkpoint_final.pt kosmosg-released --tokenizer sentencepiece.bpe.model
    """
    quiet_libraries()
    from kosmosg.convert import import_weights, plan_kosmos2, plan_reference
    from kosmosg.processor import SENTENCEPIECE_FILE, KosmosGProcessor
    from kosmosg_platform.progress import Progress

    beside = (source if source.is_dir() else source.parent) / SENTENCEPIECE_FILE
    plan = plan_kosmos2(source) if kind == "kosmos2" else plan_reference(source, vision=vision)
    config = plan.config
    processor = KosmosGProcessor.from_sentencepiece(
        tokenizer or beside, config.vision_config.image_size, config.latent_query_num, config.max_tokens
    )
    with Progress("import", 0, "tensors") as shown:
        folder = import_weights(
            plan, destination, processor, on_tensor=lambda done, total: shown.update(done, total=total)
        )
    print(folder)


@app.command()
def doctor() -> int:
    """Check this machine: what will not work, and the remedy.

    Returns exit code 1 when something will not work.

    \b
    Example: kosmosg doctor
    """
    from kosmosg_platform.cli.doctor import examine, show

    return show(examine())


app.command()(trace)
app.add_typer(track_app, name="track")


if __name__ == "__main__":
    main()
