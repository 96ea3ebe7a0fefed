"""One side of a comparison in a process of its own: it says what it is, then answers line by line.

The process writes one line of JSON about itself when it is ready, then answers every line on its standard input with
one line of JSON. Sides can so take turns in one run (A, B, A, B, …), because the clock of a shared machine drifts.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO, Any


class Peer:
    """The process, ready to be asked. ``name`` is how errors call it; ``about`` is what it said of itself.

    Raises `RuntimeError` where it cannot be started, and with its last messages where it ends early.
    """

    def __init__(self, name: str, command: Sequence[object]) -> None:
        self._name = name
        self._messages: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in `close`)
        try:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._messages,
            )
        except OSError as error:
            self._messages.close()
            raise RuntimeError(
                f"{name}: {command[0]} cannot be started ({error}); give an interpreter's path"
            ) from None
        self.about: dict[str, Any] = self._answer()

    def ask(self, request: str) -> dict[str, Any]:
        """Sends one line and gives its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._messages.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._messages.seek(0)
            text = self._messages.read()[-2000:]
            self.close()
            raise RuntimeError(f"{self._name} ended with status {status}; its last messages:\n{text}")
        answer: dict[str, Any] = json.loads(line)
        return answer
