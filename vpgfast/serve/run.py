"""Start the server."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import logging
import socket
import tempfile
from pathlib import Path

from vpgfast.errors import UserError
from vpgfast.serve.library import Library
from vpgfast.serve.models import load_model

log = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> None:
    """Serve until Ctrl-C.

    Raises:
        UserError: the model, the address or the extra ``serve`` is missing or wrong.
    """
    try:
        import uvicorn

        from vpgfast.serve.app import Server
        from vpgfast.serve.uploads import Uploads
    except ImportError as error:
        raise UserError(f"serve needs {error.name}: pip install 'vpgfast[serve]'") from None
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_listen(arguments.host, arguments.port))
        model = load_model(arguments.model, arguments.encoder)
        folder: Path = arguments.library or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vpgfast-")))
        uploads = None if arguments.no_upload else Uploads(folder, arguments.most_mib * 2**20)
        server = Server(
            model, Library(folder, model.encoder, model.cache), uploads, arguments.most_videos, arguments.top
        )
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{port}/", flush=True)
        log.info("library %s; stop with Ctrl-C", folder if arguments.library else "empty, gone afterwards")
        if not ipaddress.ip_address(host).is_loopback:
            log.warning("everyone who reaches this machine can see the videos of the library, and add to them")
        app = server.app([arguments.host, socket.gethostname()])
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
        uvicorn.Server(config).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a wrong address is known before the model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: can't listen there ({error.strerror}); if another server runs there, "
            "--port 0 takes a free one"
        ) from None
    return listening
