"""scripts/serve.py: load a model once, and listen."""

import os
import socket
import sys
import webbrowser
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer

from gpt.run.generate import load
from gpt.system.errors import import_extra

CONNECTIONS = 500  # open at once; more are refused
STOP_SECONDS = 3  # for answers that are being written when the server is stopped


def serve(folder: Path | None, arguments: Namespace) -> None:
    """Serve a run's model, or published weights if `folder` is None, until the program is stopped.

    ValueError for a model that does not write from left to right, for a host that others reach without a key, and
    without the extra `serve`; OSError if the port is taken.
    """
    needed = ("uvicorn", "starlette", "pydantic")
    uvicorn, *_ = [import_extra(name, f"serving a model needs {', '.join(needed)}", "serve") for name in needed]
    from gpt.serve.app import create_app  # these import the extra
    from gpt.serve.engine import Engine
    from gpt.serve.guard import LOOPBACK
    from gpt.serve.service import Service

    is_local = arguments.host in LOOPBACK
    if not (is_local or arguments.api_key):
        raise ValueError(f"--host {arguments.host} lets other machines in: add --api-key KEY")
    # one thread computes: see Engine
    with _listen(arguments.host, arguments.port) as listening, ThreadPoolExecutor(1, "engine") as thread:
        loaded = thread.submit(load, folder, arguments).result()
        if not (loaded.objective.continues_prompts and loaded.objective.left_to_right):
            raise ValueError(f"{loaded.name} does not continue a text: scripts/generate.py shows what it writes")
        engine = Engine(loaded.objective.model, loaded.tokenizer, arguments.rows, arguments.queue, thread)
        service = Service(loaded, engine, Path(arguments.run or arguments.pretrained).name)
        # with a key any name of this machine is right: a page elsewhere does not know the key
        hosts = (*LOOPBACK, arguments.host) if is_local else ()
        app = create_app(service, {"hosts": hosts, "api_key": arguments.api_key})
        url = (
            f"http://{f'[{arguments.host}]' if ':' in arguments.host else arguments.host}:{listening.getsockname()[1]}"
        )
        print(f"page  {url}/\nAPI   {url}/v1   Ctrl-C ends the server", file=sys.stderr)
        if arguments.open:
            Timer(0.5, webbrowser.open, [url]).start()
        config = uvicorn.Config(
            app,
            log_level="warning",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=STOP_SECONDS,
            server_header=False,
        )
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            engine.close()


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to a port. OSError names the port if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    if os.name != "nt":  # where it would let two programs share the port
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # a second server fails here, before it loads its model
    except OSError as error:
        listening.close()
        raise OSError(f"cannot listen on {host}:{port} ({error.strerror}): name another --port") from None
    return listening
