"""The thread that sends a spool to the tracking server, and the end of a run, when what remains is sent or reported."""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kosmosg_platform.console import echo, plural
from kosmosg_platform.tracking.mlflow_run import MlflowRun, NotYet, Refused, Unreachable
from kosmosg_platform.tracking.spool import Entry, Spool, count_unsent, writers

_PAUSE = 1.0  # seconds between looks, so that metrics of many steps go into one request
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 10.0  # seconds before the next try where the server does not answer
_PATIENCE = 5.0  # seconds of silence before it is reported
_ANSWERING = 20  # times as long as for a silent server is waited at the end for one that answers
_AT_ONCE = 2000
_TOLD = 3  # refusals that are printed; all of them are in the rejected file
_ORDERED = ("model", "close")  # entries that come after everything that other writers of the run have left


class Sender:
    """Sends what a writer appends, on a thread of its own that ends with the process."""

    def __init__(self, spool: Spool, uri: str, attempt: str) -> None:
        self.spool, self._uri = spool, uri
        self._delivery = Delivery(spool, MlflowRun(spool.folder, uri, attempt))
        self._wake, self._stop = threading.Event(), threading.Event()
        self._hurry = self._silent = False
        self._thread = threading.Thread(target=self._work, name=f"tracking-{spool.writer}", daemon=True)
        self._thread.start()

    def append(self, entry: Entry) -> None:
        """Take an entry; returns at once."""
        self.spool.append(entry)
        if entry["op"] != "metrics":
            self._wake.set()

    def flush(self, seconds: float) -> int:
        """Wait until everything is sent, but no longer than this for a server that does not answer, nor more than
        twenty times as long for one that does, such as with a large model; returns how many entries of the run are
        not. Other writers of the run that have ended are included.
        """
        self.spool.sync()
        self._hurry = True
        self._wake.set()
        began = time.monotonic()
        while left := count_unsent(self.spool.folder):
            waited = time.monotonic() - began
            if waited > seconds * (1 if self._silent else _ANSWERING):
                break
            time.sleep(0.05)
        self._hurry = False
        return left

    def close(self) -> None:
        """End the thread after its current request, and let other processes send what is left."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout=0.5)
        if not self._thread.is_alive():
            self.spool.close()

    def _work(self) -> None:
        silent_since, told, wait = 0.0, False, _FIRST_WAIT
        while not self._stop.is_set():
            try:
                self._delivery.send_all(self._stop.is_set)
                if self._hurry:
                    self._delivery.send_left_behind()
                if told:
                    echo(f"tracking: {self._uri} answers again")
                silent_since, told, wait, self._silent = 0.0, False, _FIRST_WAIT, False
                self._wake.wait(_PAUSE)
            except Unreachable as error:
                now, self._silent = time.monotonic(), True
                silent_since = silent_since or now
                if not told and now - silent_since > _PATIENCE and not isinstance(error, NotYet):
                    told = True
                    echo(
                        f"tracking: {self._uri} does not take what is logged ({error}); the job goes on, and keeps it "
                        f"in {self.spool.folder} until it does",
                        "warning",
                    )
                self._wake.wait(wait if not self._hurry else min(wait, 1.0))
                wait = min(wait * 2, _LONGEST_WAIT) * random.uniform(0.8, 1.0)  # many workers, one server
            self._wake.clear()


class Delivery:
    """Sends the entries of one spool in order; remembers after each request how far it came."""

    def __init__(self, spool: Spool, run: MlflowRun) -> None:
        self.spool, self._run = spool, run
        self._rejected = 0

    def send_all(self, stop: Callable[[], bool] = lambda: False) -> int:
        """Send until nothing is left; returns how many entries. Raises Unreachable."""
        count = 0
        while not stop():
            entries = self.spool.pending(_AT_ONCE)
            if not entries:
                break
            done = 0
            while done < len(entries) and not stop():
                done += self._send([entry for entry, _ in entries[done:]])
                self.spool.mark(entries[done - 1][1])
            count += done
        return count

    def _send(self, entries: list[Entry]) -> int:
        if entries[0]["op"] in _ORDERED:
            self.send_left_behind()
        try:
            return self._run.apply(entries)
        except Refused as error:
            return self._one_by_one(entries, error)

    def _one_by_one(self, entries: list[Entry], error: Refused) -> int:
        """One bad value must not take a whole batch of metrics with it."""
        if entries[0]["op"] == "metrics" and len(entries[0]["metrics"]) + len(entries) > 2:
            names = entries[0]["metrics"]
            for name, value in names.items():
                single = {**entries[0], "metrics": {name: value}}
                try:
                    self._run.apply([single])
                except Refused as refusal:
                    self._reject(single, refusal)
            return 1
        self._reject(entries[0], error)
        return 1

    def _reject(self, entry: Entry, error: Refused) -> None:
        self.spool.reject(entry, str(error))
        self._rejected += 1
        if self._rejected <= _TOLD:
            echo(f"tracking: the server refuses {_described(entry)}: {error}", "warning")

    def send_left_behind(self) -> None:
        """What processes of this run that have ended did not send."""
        for writer in writers(self.spool.folder):
            try:
                spool = Spool(self.spool.folder, writer)
            except BlockingIOError:
                continue
            try:
                Delivery(spool, self._run).send_all()
            finally:
                spool.close()


def replay(folder: Path, uri: str, attempt: str = "") -> int:
    """Send everything that is left in a spool folder, unless a running process is about to; returns how many entries.

    Raises Unreachable.
    """
    count, run = 0, MlflowRun(folder, uri, attempt)
    for writer in writers(folder):
        try:
            spool = Spool(folder, writer)
        except BlockingIOError:
            continue
        try:
            count += Delivery(spool, run).send_all()
        finally:
            spool.close()
    return count


def report_unsent(folder: Path, uri: str, count: int) -> None:
    """Tell how much is left, and how to send it."""
    echo(
        f"tracking: {plural(count, 'entry').replace('entrys', 'entries')} could not be sent to {uri}; they are kept in "
        f"{folder}. When the server is back: kosmosg track replay {folder.parent}",
        "warning",
    )


def _described(entry: Entry) -> str:
    if entry["op"] == "metrics":
        return f"{', '.join(entry['metrics'])} of step {entry['step']}"
    return " ".join(str(entry[name]) for name in ("op", "name", "path") if entry.get(name))
