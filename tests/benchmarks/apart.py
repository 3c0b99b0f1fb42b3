"""What is measured in a process of its own, so that one measurement does not leave memory to the next."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any


def measure_apart(function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - whatever it gives
    """Call a function of a module in a fresh process; what it takes and gives must be such as JSON can say."""
    code = f"import json, sys\nfrom {function.__module__} import {function.__name__} as function\n"
    code += "print(json.dumps(function(*json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def read_peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
