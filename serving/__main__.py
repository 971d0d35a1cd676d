"""`python -m serving [PRESET] [key=value ...] [--host H] [--port P] [--address A]`: deploy, run, shut down.

python -m serving toyworld model=runs/demo/instruct/export --port 8000
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from kosmosg.errors import ConfigError, KosmosGError
from kosmosg_platform.config import describe
from kosmosg_platform.console import echo, echo_error, quiet_libraries
from serving.config import DEFAULT_PRESET, PRESETS, ServingConfig, load


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point; exit code 0 if it was stopped, 2 for user errors."""
    options = _parser().parse_args(arguments)
    presets = [word for word in options.words if "=" not in word]
    overrides = [word for word in options.words if "=" in word]
    try:
        if len(presets) > 1:
            raise ConfigError(f"{' '.join(presets)}: give at most one preset, then key=value; see --help")
        if options.address:
            overrides.append(f"scale.address={options.address}")
        config = load(presets[0] if presets else DEFAULT_PRESET, overrides)
        _check(config, options.host, options.port)
        deploy(config, options.host, options.port)
    except KosmosGError as error:
        echo_error("kosmosg serve", error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def deploy(config: ServingConfig, host: str, port: int) -> None:
    """Deploy on a cluster and keep running until the process is interrupted or terminated."""
    began = time.perf_counter()
    echo(f"serving {config.chosen} (decoder {config.decoder})")
    echo("starting Ray (about ten seconds), then loading the model")
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    from kosmosg_platform.cluster.session import connect
    from serving.app import NAME, build

    quiet_libraries()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with connect(config):
        # After Ray's start, which installs handlers of its own.
        stop = threading.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: stop.set())
        serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=LoggingConfig(log_level="WARNING"))
        try:
            serve.run(build(config), name=NAME, route_prefix="/")
            echo(f"ready after {time.perf_counter() - began:.0f} s at http://{host}:{port}  (Ctrl-C to stop)")
            echo(f"  kosmosg generate 'a red ball in the snow' --url http://{host}:{port} -o out.png")
            echo(f"  API documentation: http://{host}:{port}/docs")
            stop.wait()
            echo("stopping")
        except RuntimeError as error:
            raise ConfigError(f"the deployment failed: {_cause(error)}") from error
        finally:
            if config.scale.address or os.environ.get("RAY_ADDRESS"):
                # A cluster we joined stays up, with its other applications. One that we started ends with this process.
                serve.delete(NAME)


def _check(config: ServingConfig, host: str, port: int) -> None:
    """Checks that can be done before Ray starts.

    The libraries that give the best error messages take seconds to import, so they are used only if something is wrong.
    """
    folder = config.chosen.folder
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        from kosmosg.checkpoint.export import load_export

        load_export(folder)
    if config.decoder != "toyworld" and not (Path(config.decoder) / "unet" / "config.json").is_file():
        from kosmosg.diffusion.components import NEEDED, decoder_parts

        decoder_parts(config.decoder, NEEDED)
    with socket.socket() as probe:
        # As servers do, so that the port of a server that has just ended can be reused.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"--port: {host}:{port} cannot be bound ({error.strerror}); choose another") from None


def _cause(error: BaseException) -> str:
    """The exception, which is the last line of a deployment's failure, after the remote traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _parser() -> argparse.ArgumentParser:
    keys = "\n".join(f"  {path} = {default}\n      {text}" for path, default, text in describe(ServingConfig))
    presets = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
    parser = argparse.ArgumentParser(
        prog="kosmosg serve",
        description="Deploy the endpoint and keep it running until Ctrl-C.",
        epilog=f"presets: {presets}; or the path of a YAML file\n\nkeys:\n{keys}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="PRESET key=value", help="settings; keys are listed below")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 means all interfaces")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--address", default=os.environ.get("RAY_ADDRESS"), help="Ray cluster to deploy on")
    return parser


if __name__ == "__main__":
    main()
