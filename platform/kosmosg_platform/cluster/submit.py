"""Jobs on a Ray cluster: submit, follow, show status, stop.

`Cluster` adds to Ray's job API: it finds the token for a cluster that requires one, never runs the same submission
twice at a time, keeps following when the connection breaks, submits again what a restarted head no longer knows, and
returns the job's exit code (Ray's own command returns 1 for every failure).
"""

import asyncio
import hashlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, TextIO, TypeVar
from urllib.parse import urlsplit

from kosmosg.errors import ConfigError

T = TypeVar("T")

STOPPED = 130
"""Exit code of a job that was stopped, like that of an interrupted program in a shell."""

# What a cluster never needs; Ray honours `.gitignore` as well, but an exported tree may have none.
EXCLUDES = [".git", ".venv", "runs", "dist", "build", "tests", "docs", "**/__pycache__", "**/*_cache"]

# Settings that are paths: relative ones would point into the job's temporary copy of the checkout.
WRITTEN = ("output", "dest")

RECONNECT_S = 1800.0
"""Seconds for which a cluster that has ceased to answer is asked again: a head of KubeRay or of a spot machine is back
by then."""
ASK_EVERY_S = 2.0

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def runtime_env(checkout: Path) -> dict[str, Any]:
    """What makes the checkout's code importable on every node; `platform` is an import root, never a package."""
    return {"working_dir": str(checkout), "excludes": EXCLUDES, "env_vars": {"PYTHONPATH": "platform"}}


class Cluster:
    """The job server of one Ray cluster.

    Args:
        address: the dashboard's URL, such as `http://head:8265`.

    Raises ConfigError if nothing responds there, or if it requires a token that is not known here.
    """

    def __init__(self, address: str) -> None:
        from ray.job_submission import JobSubmissionClient

        self.address = _url(address)
        headers = _authorization(self.address)
        try:
            self._client: Any = JobSubmissionClient(self.address, headers=headers)
        except (ConnectionError, RuntimeError) as error:
            raise ConfigError(f"address: {self.address} is not a Ray job server ({_first_line(error)})") from None

    def submit(self, checkout: Path, job: str, words: Sequence[str], identifier: str | None = None) -> str:
        """Submit `python -m jobs.JOB WORDS` and return its name.

        Without an `identifier` the name follows from the command: while it runs, the same command gives the same name
        and starts nothing; after it has ended, the next one, with `-2` and so on. An `identifier` never runs twice: you
        get the earlier submission if it was the same command. Raises ConfigError if it was a different one, or if the
        output would be lost.
        """
        words = absolute(words, here=urlsplit(self.address).hostname in LOOPBACK)
        entrypoint = shlex.join(["python", "-m", f"jobs.{job}", *words])
        name = identifier or self._logical_name(job, entrypoint)
        earlier = self._find(name)
        if earlier is None:
            try:
                self._client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env=runtime_env(checkout))
            except RuntimeError as error:
                # Submitted twice at once: the cluster accepts one, which is the earlier submission for the other.
                earlier = self._find(name)
                if earlier is None:
                    raise ConfigError(f"{self.address} refused the job: {_first_line(error)}") from error
            else:
                _tell(f"submitted {name}: {entrypoint}")
                return name
        if earlier.entrypoint != entrypoint:
            raise ConfigError(
                f"--id: {name} was already used for `{earlier.entrypoint}`, not for `{entrypoint}`; choose another --id"
            )
        _tell(f"{name} was submitted before and is {earlier.status.value}; it does not run again")
        return name

    def _logical_name(self, job: str, entrypoint: str) -> str:
        """The name of this command's running submission, or the first that is free."""
        base = f"{job}-{hashlib.sha256(entrypoint.encode()).hexdigest()[:10]}"
        for number in count(1):
            name = base if number == 1 else f"{base}-{number}"
            earlier = self._find(name)
            if earlier is None or not earlier.status.is_terminal():
                return name
        raise AssertionError("unreachable: count() does not end")

    def follow(self, name: str, out: TextIO | None = None, again: Callable[[], object] | None = None) -> int:
        """Copy the job's log to `out` until it ends; returns its exit code.

        A connection that breaks is made again, for up to `RECONNECT_S` seconds. `again` submits the job once more; it
        is called when the head was restarted and does not know the job any more. Raises ConfigError when the cluster
        stays away, or has lost the job and there is no `again`.
        """
        out = out or sys.stdout
        self._require(name)
        try:
            while not asyncio.run(self._copy_log(name, out)):
                if again is None:
                    raise ConfigError(
                        f"{self.address} was restarted and does not know {name} any more; submit it again, and it "
                        "resumes from its last checkpoint"
                    )
                _tell(f"{self.address} was restarted and does not know {name} any more; submitting it again")
                self._patiently(again)
            ended = self._patiently(lambda: self._wait(name, seconds=60))
        except KeyboardInterrupt:
            _tell(f"{name} keeps running; follow it with `kosmosg logs {name} -f`, stop it with `kosmosg stop {name}`")
            return STOPPED
        state = ended.status.value
        if state == "SUCCEEDED":
            return 0
        _tell(f"{name} {state}: {ended.message or 'no reason given'}")
        return STOPPED if state == "STOPPED" else int(ended.driver_exit_code or 1)

    def log(self, name: str) -> str:
        """The log so far."""
        self._require(name)
        return str(self._client.get_job_logs(name))

    def status(self, name: str | None = None) -> Iterator[str]:
        """One line for each submission, newest first; or for one, with what it runs and why it ended."""
        if name is not None:
            job = self._require(name)
            yield _line(job)
            yield f"  runs: {job.entrypoint}"
            if job.message:
                yield f"  message: {' '.join(job.message.split())}"
            return
        submissions = [job for job in self._client.list_jobs() if job.submission_id]
        for job in sorted(submissions, key=lambda job: -(job.start_time or 0)):
            yield _line(job)
        if not submissions:
            yield f"no jobs have been submitted to {self.address}"

    def stop(self, name: str) -> str:
        """Stop a job and wait until it has ended; returns one sentence about what happened."""
        if self._require(name).status.is_terminal():
            return f"{name} has already ended: {self._require(name).status.value}"
        self._client.stop_job(name)
        return f"{name} {self._wait(name, seconds=60).status.value}"

    def _find(self, name: str) -> Any | None:
        try:
            return self._client.get_job_info(name)
        except RuntimeError as error:
            if "does not exist" in str(error):
                return None
            raise

    def _require(self, name: str) -> Any:
        job = self._find(name)
        if job is None:
            raise ConfigError(
                f"there is no job {name!r} at {self.address}; `kosmosg status --address {self.address}` lists them"
            )
        return job

    def _wait(self, name: str, seconds: float) -> Any:
        """The job once it has ended, or its last state after `seconds`."""
        deadline = time.monotonic() + seconds
        while not (job := self._require(name)).status.is_terminal() and time.monotonic() < deadline:
            time.sleep(0.2)
        return job

    def _patiently(self, ask: Callable[[], T]) -> T:
        """What the cluster answers, asked until it does. Raises ConfigError after `RECONNECT_S` without an answer."""
        deadline = time.monotonic() + RECONNECT_S
        while True:
            try:
                return ask()
            except (RuntimeError, OSError) as error:  # of `requests` too; a head that starts answers with errors
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"address: {self.address} has not answered for {RECONNECT_S / 60:.0f} minutes "
                        f"({_first_line(error)}); submit again when it does, and nothing runs twice"
                    ) from None
                time.sleep(ASK_EVERY_S)

    async def _copy_log(self, name: str, out: TextIO) -> bool:
        """Tail the log; after a broken connection, continue where it broke, as long as the job runs.

        False if the cluster does not know the job any more.
        """
        from aiohttp import ClientError

        seen = 0
        while True:
            position = 0
            try:
                async for text in self._client.tail_job_logs(name):
                    fresh = text[max(0, seen - position) :]
                    position += len(text)
                    if fresh:
                        out.write(fresh)
                        out.flush()
                        seen = position
            except (RuntimeError, OSError, ClientError) as error:
                _tell(f"lost the connection to {self.address} ({_first_line(error)}); retrying")
                await asyncio.sleep(ASK_EVERY_S)
            job = self._patiently(lambda: self._find(name))
            if job is None or job.status.is_terminal():
                return job is not None


def absolute(words: Sequence[str], here: bool) -> list[str]:
    """`key=path` settings with paths that mean the same on the cluster as in this shell.

    On the cluster the job runs in a temporary copy of the checkout, so output needs an absolute path. It is made
    absolute if the cluster is this machine (`here`); otherwise the user must give one. Existing relative input paths
    become absolute too.
    """
    fixed = []
    keys = {word.partition("=")[0] for word in words}
    for word in words:
        key, sign, value = word.partition("=")
        relative = sign and value and not os.path.isabs(value) and "://" not in value
        if relative and key in WRITTEN and not here:
            raise ConfigError(f"{word}: on a cluster give an absolute path that every node sees, as {key}=/shared/runs")
        if relative and (key in WRITTEN or ("/" in value and Path(value).exists())):
            word = f"{key}={Path(value).resolve()}"
        fixed.append(word)
    if "output" not in keys:
        if not here:
            raise ConfigError("output: on a cluster give an absolute path that every node sees, as output=/shared/runs")
        fixed.append(f"output={Path('runs').resolve()}")
    return fixed


def _url(address: str) -> str:
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"address: {address!r} is not the URL of a dashboard; give something like http://head:8265 "
            "(ray:// and port 6379 are different interfaces)"
        )
    return url.rstrip("/")


def _authorization(url: str) -> dict[str, str]:
    """The header for a cluster that requires a token (Ray's default since 2.5x), none for one that does not.

    The cluster itself is asked, because `RAY_AUTH_MODE` only describes clusters started here.
    """
    import requests

    def answer(headers: dict[str, str]) -> int:
        try:
            # Ask for the job list, since some servers reveal their version without a token.
            return int(requests.get(f"{url}/api/jobs/", headers=headers, timeout=10).status_code)
        except requests.exceptions.RequestException as error:
            raise ConfigError(
                f"address: no Ray cluster answers at {url} ({type(error).__name__}); give the dashboard of a "
                "running one, such as --address http://head:8265"
            ) from None

    if answer({}) != 401:
        return {}
    token = _token()
    if token is None:
        raise ConfigError(
            f"address: {url} requires a token; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or copy the cluster's "
            "~/.ray/auth_token here"
        )
    headers = {"Authorization": f"Bearer {token}"}
    if answer(headers) in (401, 403):
        raise ConfigError(
            f"address: {url} rejects the token that is set here; set RAY_AUTH_TOKEN to the token of that cluster, "
            "which `ray get-auth-token` prints on its head"
        )
    return headers


def _token() -> str | None:
    """Looks where Ray does, in the same order: the variable, the file that a variable names, the home folder."""
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text().strip() or None if path.is_file() else None


def _line(job: Any) -> str:
    started = datetime.fromtimestamp((job.start_time or 0) / 1000).strftime("%Y-%m-%d %H:%M:%S")
    seconds = ((job.end_time or time.time() * 1000) - (job.start_time or 0)) / 1000
    return f"{job.submission_id}  {job.status.value}  started {started}  {seconds:.0f} s"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
