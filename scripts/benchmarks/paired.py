"""A second process that runs torch with denormal numbers flushed to zero, in the same rounds as this one.

torch.set_flush_denormal applies to the calling thread and to the threads that it starts later. Threads that
torch has already started keep their mode, so switching it within one process would not work; here it is set
before torch starts any. The two processes exchange lines of JSON.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lstmx.training import keep_freed_memory
from scripts.benchmarks.timing import Rival, rival

_ROOT = Path(__file__).resolve().parents[2]


class PairedProcess:
    """The second process, as a context manager. It keeps all rivals built in it.

    Args:
      flush: whether denormals are flushed in it.
    """

    def __init__(self, flush: bool):
        self._flush = flush

    def __enter__(self):
        command = [sys.executable, "-m", "scripts.benchmarks.paired", *(["--flush"] if self._flush else [])]
        self._process = subprocess.Popen(
            command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def rival(self, function: str, *arguments: Any) -> Rival:
        """A function by its name (`torch_rivals.named`), built and timed in that process."""
        number, compiling = self._ask({"function": function, "arguments": arguments})
        return Rival(lambda runs: self._ask({"rival": number, "runs": runs}), compiling)

    def flushes_denormals(self) -> bool:
        """Whether all its threads flush denormals, which not every processor supports."""
        return self._ask({"flushes": True})

    def _ask(self, question: dict) -> Any:
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reported below, since there is no answer
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the paired process has ended, exit status {self._process.wait()}")
        return json.loads(answer)


def serve() -> None:
    """Answers the requests on stdin until it is closed."""
    import torch

    keep_freed_memory()
    torch.set_flush_denormal("--flush" in sys.argv)
    from scripts.benchmarks import torch_rivals

    rivals = []
    for line in sys.stdin:
        question = json.loads(line)
        if "runs" in question:
            answer = rivals[question["rival"]].time(question["runs"])
        elif "flushes" in question:
            answer = torch_rivals.flushes_denormals()
        else:
            rivals.append(rival(torch_rivals.named(question["function"])(*question["arguments"])))
            answer = len(rivals) - 1, rivals[-1].compiling
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
