"""The server of the page."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from tempfile import TemporaryDirectory

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.middleware.trustedhost import TrustedHostMiddleware

from .page import build
from .showing import Showing

LARGEST = 32 * 2**20  # bytes of a photo's file
WAITING = 20  # photos; who comes then is told to come later
THEME = gr.themes.Soft(
    primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)  # no fonts from elsewhere
LOOPBACK = "127.0.0.1"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; of port 0, at a free one.

    Raises:
        OSError: it cannot be had; the message says what to do.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:  # OverflowError: of a port above 65535
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen at --host {host} --port {port}: {reason}; give another --port, or 0 for a free one") from error


def serve(showing: Showing, at: socket.socket) -> None:
    """Serve the page until Ctrl-C or SIGTERM. What is sent and shown is in a folder that goes with the server."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn ends at either, and then raises it again
    with contextlib.suppress(KeyboardInterrupt), TemporaryDirectory(prefix="atmnet-serve-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # there is no other way to say it
        page = build(showing).queue(max_size=WAITING, api_open=False)
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        if at.getsockname()[0] == LOOPBACK:  # a page from elsewhere could give this address a name of its own, and read what it answers
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])
        gr.mount_gradio_app(
            app,
            page,
            path="/",
            footer_links=["api"],
            run_history=False,
            show_error=False,
            max_file_size=LARGEST,
            ssr_mode=False,
            theme=THEME,
        )
        page.has_launched = True  # else Gradio takes whatever path it is sent for a file that was uploaded, and would show any image here
        # Browsers keep a connection open for as long as they show the page.
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        server.run(sockets=[at])
