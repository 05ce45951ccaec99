"""Another Python in which tests call functions: one that asks a Hub of the test's own, with or without the package.

huggingface_hub reads where the Hub is when it is imported, and conftest.py has it offline. As starting takes seconds,
one interpreter answers many tests; each function imports what it needs, and speaks JSON.
"""

import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_hub import TOKEN

ROOT = Path(__file__).parents[1]
LOOP = """
import json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is no answer
for line in sys.stdin:
    source, name, arguments = json.loads(line)
    names = {}
    try:
        exec(source, names)
        answer = {"value": names[name](*arguments)}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    answers.write(json.dumps(answer) + "\\n")
    answers.flush()
"""
WITHOUT_THE_PACKAGE = 'import sys\nsys.modules["modeling_htsat"] = None\n'


class OtherProcessError(Exception):
    """What the function raised there: its name and its message."""


class OtherProcess:
    """`process(function, *arguments)` runs a function of the test file there, and returns what it returned."""

    def __init__(self, endpoint: str, home: Path, has_package: bool = True):
        surroundings = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        surroundings |= {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        surroundings |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", ("" if has_package else WITHOUT_THE_PACKAGE) + LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=home,
            env={**surroundings, "PYTHONPATH": str(ROOT) if has_package else ""},
        )

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        source = textwrap.dedent(inspect.getsource(function))
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([source, function.__name__, arguments]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise OtherProcessError(answer["error"]) from RuntimeError(answer["traceback"])
        return answer["value"]

    def close(self) -> None:
        self.process.kill()  # it has nothing to finish
        self.process.communicate()
