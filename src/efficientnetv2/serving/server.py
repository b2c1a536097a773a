"""Run the server: address, signals, end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from efficientnetv2.serving.app import create_app
from efficientnetv2.serving.options import Models, ServerOptions
from efficientnetv2.utils.errors import InputError

_logger = logging.getLogger(__name__)

# Connections that wait to be accepted, at most. Source: uvicorn's default.
_BACKLOG = 2048
# Seconds after which an idle connection is closed. Ours: more than the 60 of usual load balancers, which would send a
# request on it meanwhile, and answer 502.
_KEEP_ALIVE_S = 75
# Seconds in which the last requests arrive after a signal to stop. Ours.
_LAST_REQUESTS_S = 0.5


def serve(
    models: Models,
    options: ServerOptions | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_start: Callable[[str, FastAPI], object] | None = None,
) -> None:
    """Serve models over HTTP until SIGTERM or Ctrl-C; requests that were accepted get their response before the end.

    SIGHUP loads all models again, without losing a request.

    Args:
        models, options: See `create_app`.
        host: Address to listen on. The default is reached from this machine only; "0.0.0.0" from others too.
        port: Port to listen on; 0 takes a free one.
        on_start: Called with the URL and the application before the first request.

    Raises:
        InputError: A model can't be loaded, the address is in use, or this thread runs an event loop.
    """
    options = options or ServerOptions()
    with suppress(RuntimeError):  # there is none
        asyncio.get_running_loop()
        raise InputError("`serve` needs a thread without an event loop. In a notebook, use effnetv2 serve.")
    listener = _listen(host, port)
    with listener:
        app = create_app(models, options)
        if not options.api_keys and not _is_loopback(host):
            _logger.warning(f"Everybody who reaches {host} can use the server. Set an API key: `api_key_file`.")
        if on_start is not None:
            on_start(_url(host, listener), app)
        config = uvicorn.Config(
            app,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            # A request takes as long as its time limit at most, and a moment for its response.
            timeout_graceful_shutdown=int(options.timeout) + 5,
        )
        # Uvicorn raises the signal again after it has stopped: a planned end is no failure.
        earlier = signal.signal(signal.SIGTERM, lambda *_: None) if _gets_signals() else None
        try:
            asyncio.run(_run(_Server(config), listener, app))
        finally:
            if _gets_signals():
                signal.signal(signal.SIGTERM, earlier)


def _gets_signals() -> bool:
    """Whether Python runs the handlers of signals in this thread."""
    return threading.current_thread() is threading.main_thread()


class _Server(uvicorn.Server):
    """Uvicorn that waits before it closes idle connections: a client may just be sending on one of them."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no connection, serve what arrives on the open ones for a moment, then end as uvicorn does."""
        await asyncio.sleep(0)  # accepts the connections that wait
        for server in self.servers:
            server.close()
        self.server_state.default_headers.append((b"connection", b"close"))
        await asyncio.sleep(_LAST_REQUESTS_S)
        await super().shutdown(sockets)


async def _run(server: uvicorn.Server, listener: socket.socket, app: FastAPI) -> None:
    tasks: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.create_task(app.state.service.models.reload_all())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if _gets_signals():
        with suppress(AttributeError, NotImplementedError):  # Windows has no such signal
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    await server.serve(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections. Raises InputError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"`port` {port} of `host` {host} can't be used ({reason}). Give another one.") from error


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    # Clients cannot send to the address that means all addresses.
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
