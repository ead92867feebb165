"""Real processes that run the program and are killed by real signals.

They are forked from one that has imported everything, so that a run takes a second of processor time and not five.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SERVER = """
import json, os, signal, sys
import torch, transformers
import unbackdoor.workflows.remove, unbackdoor.methods.sande, unbackdoor.report.html, unbackdoor.report.figures
import transformers.models.llama.modeling_llama
from unbackdoor.cli import main
torch.set_num_threads(1)
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(log, number)
        os.close(0)
        sys.argv = ["unbackdoor", *asked["arguments"]]
        code = 1
        try:
            code = main(asked["arguments"]) or 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 70
        os._exit(code)
    print(json.dumps(child), flush=True)
    print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), flush=True)
"""


class Server:
    """Runs commands one after another, each in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._read() == "ready"

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def run(
        self,
        arguments: Sequence[object],
        log: Path,
        *,
        number: int | None = None,
        when: Callable[[], bool] = lambda: False,
    ) -> int:
        """Run a command to its end, or send it a signal as soon as `when`; its exit code, negative for a signal's."""
        assert self._process.stdin is not None
        asked = {"arguments": [str(a) for a in arguments], "log": str(log)}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        child = self._read()
        while number is not None and not when():
            try:
                os.kill(child, 0)
                if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    raise AssertionError(f"it ended before the moment came: {log.read_text()[-2000:]}")
            except (ProcessLookupError, FileNotFoundError):
                raise AssertionError(f"it ended before the moment came: {log.read_text()[-2000:]}") from None
            time.sleep(0.001)
        if number is not None:
            os.kill(child, number)
        code: int = self._read()
        return code

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
