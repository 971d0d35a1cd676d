"""What this machine can do: one line per finding, with the reason and a remedy for everything that will not work.

Every check is a function that yields findings and changes nothing; a check that fails itself is a finding too.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kosmosg.errors import KosmosGError
from kosmosg_platform.cluster import workspace
from kosmosg_platform.console import styled

Level = Literal["ok", "note", "bad"]

# What each group of packages is for; the extra that installs a group is named in its title.
PACKAGES = {
    "the model": ("torch", "transformers", "diffusers", "sentencepiece", "safetensors", "pyarrow"),
    "jobs and serving (extra `platform`)": ("ray", "deepspeed", "mlflow", "pydantic", "fastapi", "typer", "httpx"),
    "masks of real photos (extra `annotate`)": ("opencv-python-headless",),
    "noun phrases of real captions (extra `spacy`)": ("spacy",),
}
OPTIONAL = ("opencv-python-headless", "spacy")

# Releases that the platform pins, because the tests run against them.
PINNED = {"ray": "2.60.0", "deepspeed": "0.19.8", "mlflow": "3.17.2"}

MEMORY_GB = 6.0
"""The most that the demo and the tests need, with Ray, two workers and an endpoint."""

DISK_GB = 5.0


@dataclass(frozen=True)
class Finding:
    """The result of one check: `bad` means it will not work, `note` is worth knowing, `ok` is as it should be."""

    level: Level
    what: str
    remedy: str = ""


def examine() -> list[Finding]:
    """All findings of this machine."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings += check()
        except Exception as error:  # noqa: BLE001 - a broken installation breaks checks in ways nobody can list
            findings.append(Finding("bad", f"the check {check.__name__.strip('_')} failed: {error!r}"))
    return findings


def show(findings: Iterable[Finding]) -> int:
    """Print the findings; exit code 1 if something will not work."""
    marks = {"ok": ("  ok", "success"), "note": ("note", "warning"), "bad": (" BAD", "error")}
    bad = 0
    for finding in findings:
        print(f"{styled(*marks[finding.level], sys.stdout)} {finding.what}")
        if finding.remedy:
            print(styled(f"      -> {finding.remedy}", "dim", sys.stdout))
        bad += finding.level == "bad"
    told = f"{bad} of these will not work" if bad else "no problems found"
    print(styled(told, "error" if bad else "success", sys.stdout))
    return 1 if bad else 0


def _python() -> Iterator[Finding]:
    yield Finding("ok", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Finding]:
    for purpose, names in PACKAGES.items():
        found: list[str] = []
        for name in names:
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                level: Level = "note" if name in OPTIONAL else "bad"
                extra = re.search(r"extra `(\w+)`", purpose)
                yield Finding(
                    level,
                    f"{name} is not installed; it is needed for {purpose}",
                    f"pip install 'kosmosg[{extra[1]}]'" if extra else f"pip install {name}",
                )
                continue
            found.append(f"{name} {version}")
            if version != PINNED.get(name, version):
                yield Finding(
                    "note",
                    f"{name} {version} is installed, the platform is tested with {PINNED[name]}",
                    f"pip install {name}=={PINNED[name]}",
                )
        if found:
            yield Finding("ok", f"{purpose}: {', '.join(found)}")


def _accelerator() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is the CPU build"
        yield Finding(
            "note", f"no GPU is visible ({built}): the presets tiny, minutes and toyworld work, gpu and paper do not"
        )
        return
    built_for = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        major, minor = properties.major, properties.minor
        name = f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{major}{minor}"
        if not has_code_for(built_for, major, minor):
            remedy = "pip install torch --index-url https://download.pytorch.org/whl/cu126" if major == 7 else ""
            yield Finding("bad", f"{name}: this build of torch has no kernels for it ({' '.join(built_for)})", remedy)
        elif major < 8:
            yield Finding("note", f"{name}: has no bf16; use engine.precision=fp16")
        else:
            yield Finding("ok", f"{name}: bf16 and fp16")


def has_code_for(built_for: Iterable[str], major: int, minor: int) -> bool:
    """Whether a torch build (`torch.cuda.get_arch_list()`) runs on a GPU of compute capability major.minor.

    Machine code (`sm_80`) runs within its major version from its own minor version on; intermediate code
    (`compute_90`) is compiled for that GPU and every later one.
    """
    for kind, digits in re.findall(r"(sm|compute)_(\d+)", " ".join(built_for)):
        code = int(digits[:-1]), int(digits[-1])
        if code <= (major, minor) and (kind == "compute" or code[0] == major):
            return True
    return False


def _compiler() -> Iterator[Finding]:
    compiler = shutil.which("g++")
    if compiler:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=10, check=False)
        yield Finding("ok", f"g++: {version.stdout.splitlines()[0] if version.stdout else compiler}")
    else:
        yield Finding(
            "note",
            "no g++: training works, but DeepSpeed cannot build its own kernels (engine.offload_optimizer needs one)",
            "install g++ (Debian: apt install g++)",
        )


def _stale_locks() -> Iterator[Finding]:
    """A process killed while DeepSpeed was compiling leaves a lock on which the next one waits forever, silently."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    for lock in sorted(root.glob("**/lock")):
        yield Finding("note", f"a build lock was left in {lock.parent}", f"if nothing is being compiled: rm {lock}")


def _ray_authentication() -> Iterator[Finding]:
    mode = os.environ.get("RAY_AUTH_MODE")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    known = "RAY_AUTH_TOKEN" in os.environ or path.is_file()
    if mode == "token" and not known:
        yield Finding(
            "bad",
            f"RAY_AUTH_MODE=token, but there is neither RAY_AUTH_TOKEN nor {path}",
            "ray get-auth-token --generate, or copy the cluster's token",
        )
    elif mode is None:
        yield Finding(
            "note",
            "by default Ray requires a token on clusters started here "
            f"({'one is set up' if known else 'none is set up yet'}); kosmosg sends it to clusters that require it",
            "set RAY_AUTH_MODE to token or disabled to choose",
        )
    else:
        yield Finding("ok", f"RAY_AUTH_MODE={mode}{', token known' if known else ''}")
    if address := os.environ.get("RAY_ADDRESS"):
        yield Finding("note", f"RAY_ADDRESS={address}: jobs and the endpoint run there, not on a cluster of their own")


def _shadowed_platform() -> Iterator[Finding]:
    """`platform/` is an import root; as a package it would shadow the standard library's module."""
    if not hasattr(platform, "system") or "kosmosg" in str(getattr(platform, "__file__", "")):
        yield Finding(
            "bad", "a package named platform shadows the standard library's module", "remove platform/__init__.py"
        )


def _checkout() -> Iterator[Finding]:

    try:
        root = workspace.find()
    except KosmosGError as error:
        yield Finding("note", f"{error} (run, submit, plan and serve need one)")
        return
    yield Finding("ok", f"checkout {root}: jobs {' '.join(workspace.jobs(root))}")
    if (root / "platform" / "__init__.py").exists():
        yield Finding("bad", f"{root}/platform/__init__.py breaks `import platform`", f"rm {root}/platform/__init__.py")


def _shipped_weights() -> Iterator[Finding]:
    """What plug-ins ship: decoders and the models trained for them."""
    from kosmosg.hub import MODELS
    from kosmosg.plugins import load_plugins

    load_plugins()
    for name, shipped in MODELS.items():
        parts = ("unet", "vae", "scheduler", "text_encoder", *shipped.models)
        missing = [part for part in parts if not (shipped.folder / part).is_dir()]
        if missing:
            yield Finding(
                "bad",
                f"the shipped model {name!r} lacks {', '.join(missing)} in {shipped.folder}",
                "install the package again, or restore the folder from the repository",
            )
        else:
            yield Finding("ok", f"decoder {name} and models {', '.join(shipped.models)} are in {shipped.folder}")


def _room() -> Iterator[Finding]:
    memory = _available_memory() / 1e9
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    facts = f"{os.cpu_count()} CPU cores, {memory:.0f} GB memory available, {free:.0f} GB disk free here"
    if memory < MEMORY_GB:
        yield Finding("bad", facts, f"the demo needs about {MEMORY_GB:.0f} GB of memory")
    elif free < DISK_GB:
        yield Finding("bad", facts, f"the demo needs about {DISK_GB:.0f} GB of disk")
    else:
        yield Finding("ok", facts)
    # Ray keeps its object store there; if it is too small, Ray falls back to the disk and everything is slow.
    shared = Path("/dev/shm")  # noqa: S108 - measured, not written
    if shared.is_dir() and (size := shutil.disk_usage(shared).total / 1e9) < 1:
        yield Finding("note", f"{shared} has {size:.1f} GB: too small for Ray", "docker run --shm-size=2g")


def _available_memory() -> int:
    """Bytes that new processes can use without swapping."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _writable() -> Iterator[Finding]:
    runs = Path.cwd() / "runs"
    parent = runs if runs.is_dir() else runs.parent
    try:
        with tempfile.TemporaryFile(dir=parent):
            yield Finding("ok", f"results can be written to {runs}")
    except OSError as error:
        yield Finding("bad", f"{parent} cannot be written ({error.strerror})", "give output=FOLDER")


CHECKS: tuple[Callable[[], Iterable[Finding]], ...] = (
    _python,
    _packages,
    _accelerator,
    _compiler,
    _stale_locks,
    _ray_authentication,
    _shadowed_platform,
    _checkout,
    _shipped_weights,
    _room,
    _writable,
)
