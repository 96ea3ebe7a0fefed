"""The one place where programs outside this process are started: time limit, log kept, failure raised with its end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

_LAST_LINES = 12


class EncoderError(RuntimeError):
    """A program failed. ``log``: the command and all that the program printed, for a file beside the results."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log

    def __reduce__(self) -> tuple[type[EncoderError], tuple[str, str]]:
        return type(self), (str(self), self.log)  # both survive the way out of a worker process


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """``log``: command, output and errors as text; ``seconds``: processor time, of all threads."""

    log: str
    seconds: float


def launch(command: Sequence[str | Path], folder: Path, *, timeout_s: float) -> Finished:
    """Runs a program in ``folder`` to its end, without input.

    Processor time is given, not wall time: it does not grow when several encoders share the cores. Raises
    `EncoderError` where the program cannot be started, runs longer than ``timeout_s`` seconds of wall time (it is
    stopped, with its children), or ends with another status than 0.
    """
    words = [str(word) for word in command]
    outputs = [folder / "stdout.txt", folder / "stderr.txt"]

    def printed() -> list[str]:
        return [path.read_text("utf-8", "replace") if path.exists() else "" for path in outputs]

    def log() -> str:
        texts = printed()
        return f"$ {shlex.join(words)}\n{texts[0]}\n--- errors ---\n{texts[1]}"

    try:
        with outputs[0].open("wb") as out, outputs[1].open("wb") as err:
            process = subprocess.Popen(
                words, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
    except OSError as error:
        raise EncoderError(f"{words[0]} cannot be started: {error}", log()) from error
    expired = threading.Event()

    def stop() -> None:
        expired.set()
        kill_group(process.pid)

    timer = threading.Timer(timeout_s, stop)
    timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:  # such as Ctrl-C: no encoder outlives its caller
        kill_group(process.pid)
        process.wait()
        raise
    finally:
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        reason = f"took more than {timeout_s:g} s and was stopped" if expired.is_set() else _ending(process.returncode)
        said = [[line for line in text.splitlines() if line.strip()] for text in printed()]
        if not expired.is_set() and (ends := [lines[-1].strip() for lines in reversed(said) if lines]):
            reason += f": {ends[0]}"  # the last word on stderr, else stdout, for lists of failures
        last = "\n".join([*said[0], "--- errors ---", *said[1]][-_LAST_LINES:])
        raise EncoderError(f"{Path(words[0]).name} {reason}\nThe end of its log:\n{last}", log())
    return Finished(log(), usage.ru_utime + usage.ru_stime)


def _ending(code: int) -> str:
    return f"ended with status {code}" if code > 0 else f"was ended by signal {-code} ({signal.strsignal(-code)})"


def kill_group(pid: int) -> None:
    """Ends a program that was started in a session of its own, with its children."""
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.killpg(pid, signal.SIGKILL)
