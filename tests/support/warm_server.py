"""Forks Python processes that begin with heavy imports done; `warm_processes` starts it and sends it commands.

It has two stages. The first has imported what loads a saved model without this project. The second is forked from it,
has imported this project too, and knows its plugins. Each listens on a socket of its own, and both end with their
standard input.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 300
"""After so long a process is stopped."""


def import_plain() -> None:
    """What a process needs that opens a saved model with transformers alone."""
    import compressed_tensors  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from safetensors.torch import load_file  # noqa: F401
    from transformers import GenerationMixin  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    torch.set_num_threads(1)


def import_project(plain: str) -> None:
    """What commands need. Models that they save are reloaded by the first stage."""
    import altair  # noqa: F401
    import hydra  # noqa: F401

    from compressor.commands import forecast, main, run  # noqa: F401
    from compressor.export import verification
    from compressor.plugins import installed
    from tests.support import warm_processes

    installed()
    verification.subprocess = warm_processes.make_subprocess(plain)


def serve(listener: socket.socket) -> NoReturn:
    """Answer each request with the exit status of its process, until the standard input ends."""
    gc.collect()
    gc.freeze()  # or a first collection in a new process would copy most of the memory
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        while has_ended_child():
            pass
        if listener not in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        listener.close()
        request = json.loads(connection.makefile().readline())
        child = os.fork()
        if not child:
            connection.close()
            become(request)
        _, status = os.waitpid(child, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)


def has_ended_child() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def become(request: dict[str, Any]) -> NoReturn:
    """Run what follows `python` on a command line, in a folder and an environment, with outputs to files."""
    signal.alarm(SECONDS)
    os.chdir(request["folder"])
    path = request["environment"].get("PYTHONPATH")
    if path and path != os.environ.get("PYTHONPATH"):
        sys.path[:0] = path.split(os.pathsep)
        if "compressor.plugins" in sys.modules:
            sys.modules["compressor.plugins"].installed.cache_clear()
    os.environ.clear()
    os.environ.update(request["environment"])
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(request[name], os.O_WRONLY), descriptor)
    sys.stdin = open(os.devnull)
    # The thread pool of the parent is gone; threads that made it anew at the same time would find half of it.
    sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    status: object = None
    try:
        run(request["arguments"])
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    end(status or 0)


def run(arguments: list[str]) -> None:
    """As `python` does with `-c`, with `-m`, and with a script, before which may be `-P`."""
    option, *rest = arguments
    if option == "-P":
        option, *rest = rest
    else:
        sys.path.insert(0, "")
    sys.argv = [option, *rest[option in ("-c", "-m") :]]
    if option == "-c":
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif option == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(option, run_name="__main__")


def end(status: int) -> NoReturn:
    """As an interpreter ends, but for taking all modules apart, which takes half a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(plain: str, project: str) -> NoReturn:
    sockets = {}
    for path in (plain, project):
        sockets[path] = socket.socket(socket.AF_UNIX)
        sockets[path].bind(path)
        sockets[path].listen()
    print("listening", flush=True)
    root = str(Path(__file__).parents[2])
    sys.path[:] = [path for path in sys.path if path not in ("", root)]
    import_plain()
    if os.fork():
        sockets.pop(project).close()
    else:
        sockets.pop(plain).close()
        sys.path.insert(0, root)
        import_project(plain)
        sys.path.remove(root)
    (listener,) = sockets.values()
    serve(listener)


if __name__ == "__main__":
    main(*sys.argv[1:])
