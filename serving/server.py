"""The web server of the page: access checks, limits, and the queue of the worker process."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.message import pack, unpack
from serving.worker import Settings, work
from utils.errors import UserError

PAGE = Path(__file__).resolve().parent.parent / "app"

LARGEST_BODY = 256 * 2**20  # bytes: a photograph, its mask and earlier fills
AT_A_TIME = 2  # requests with bodies in memory: one is processed while the next is read
MOST_WAITING = 40  # requests; more are refused
PATIENCE = 20.0  # seconds without a byte of the body before the request times out
MEDIA_TYPE = "application/octet-stream"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
        " form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Worker:
    """The process of serving.worker, with a queue of requests."""

    def __init__(self, settings: Settings) -> None:
        """Start the process and wait until it is ready. Raises UserError if a model cannot be used."""
        self._settings = settings
        self._turn = asyncio.Lock()
        self._starting: asyncio.Future[Any] | None = None
        self.offers = self._start()

    def _start(self) -> dict[str, Any]:
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=work, args=(other, self._settings), daemon=True)
        self._process.start()
        other.close()
        try:
            offers, _ = unpack(self._connection.recv_bytes())
        except EOFError:
            raise UserError("the process that fills ended as it started; was memory short?") from None
        if "error" in offers:
            raise UserError(offers["error"])
        return offers

    async def ask(self, request: bytes) -> bytes:
        """Queue a request and return the answer. Cancelling this during the processing kills the process."""
        async with self._turn:
            finished = True
            try:
                await self._ready()
                finished = False
                await asyncio.to_thread(self._connection.send_bytes, request)
                answer = await asyncio.to_thread(self._connection.recv_bytes)
                finished = True
                return answer
            except UserError as error:
                return pack({"error": str(error)})
            except (EOFError, OSError):
                return pack({"error": "the process that fills was ended; was memory short? Try a smaller picture"})
            finally:
                if not finished:
                    self._process.kill()  # this also ends the threads that use the connection
                    self._start_another()

    async def _ready(self) -> None:
        """Wait until the process is ready; start a new one if it has ended. Raises UserError if it cannot start."""
        if self._starting is None and not self._process.is_alive():
            self._start_another()
        if self._starting is not None:
            try:
                await asyncio.shield(self._starting)  # cancelling this request does not stop the start
            finally:
                if self._starting.done():
                    self._starting = None

    def _start_another(self) -> None:
        self._starting = asyncio.ensure_future(asyncio.to_thread(self._start))
        # The next request reports an error. If there is none, asyncio must not log the error as never retrieved.
        self._starting.add_done_callback(lambda starting: starting.cancelled() or starting.exception())

    def stop(self) -> None:
        self._process.kill()
        self._process.join()


def serve(server: Starlette, listening: socket.socket) -> None:
    """Serve requests on a listening socket until Ctrl-C."""
    config = uvicorn.Config(
        server, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=1, server_header=False
    )
    uvicorn.Server(config).run(sockets=[listening])


def make_server(worker: Worker, hosts: Callable[[str], bool]) -> Starlette:
    """Return the web application. hosts: returns whether a Host header, without its port, names this server."""
    room = asyncio.Semaphore(AT_A_TIME)
    waiting = 0

    async def methods(_: Request) -> Response:
        return JSONResponse(worker.offers)

    async def task(request: Request) -> Response:
        nonlocal waiting
        if request.headers.get("content-type") != MEDIA_TYPE:
            return PlainTextResponse(f"Content-Type must be {MEDIA_TYPE}", 415)
        if waiting >= MOST_WAITING:
            return PlainTextResponse("too many requests are waiting; try again later", 503)
        waiting += 1
        try:
            async with room:
                body = await read_body(request)
                return await _unless_it_leaves(request, worker.ask(body))
        except TimeoutError:
            return PlainTextResponse("the request did not arrive in time", 408)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except TooLarge:
            limit = LARGEST_BODY // 2**20
            return PlainTextResponse(
                f"photograph, mask and fills have over {limit} MB together; use a smaller one", 413
            )
        finally:
            waiting -= 1

    return Starlette(
        routes=[
            Route("/methods", methods),
            Route("/task", task, methods=["POST"]),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
    )


class TooLarge(Exception):
    """The body has more than LARGEST_BODY bytes."""


async def read_body(request: Request) -> bytes:
    """Read the body. Raises TooLarge, ClientDisconnect, or TimeoutError after PATIENCE seconds without a byte."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared[:20]) > LARGEST_BODY:
        raise TooLarge
    chunks: list[bytes] = []
    size = 0
    stream = request.stream()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream), PATIENCE)
        except StopAsyncIteration:
            return b"".join(chunks)
        size += len(chunk)
        if size > LARGEST_BODY:
            raise TooLarge
        chunks.append(chunk)


async def _unless_it_leaves(request: Request, answering: Any) -> Response:
    """Return the answer. If the client disconnects first, cancel the work and raise ClientDisconnect."""
    answer = asyncio.ensure_future(answering)
    left = asyncio.ensure_future(_until_it_leaves(request))
    try:
        await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return Response(answer.result(), media_type=MEDIA_TYPE)
        raise ClientDisconnect
    finally:
        for future in (answer, left):
            future.cancel()


async def _until_it_leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Guard:
    """Middleware that refuses requests from other sites' pages, and adds security headers to each answer.

    An unknown Host means that another domain resolves to this machine (DNS rebinding). An unknown Origin means that
    another site's page sent the request.
    """

    def __init__(self, app: ASGIApp, hosts: Callable[[str], bool]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *ours]
            await send(message)

        refusal = self._refusal(scope)
        app = PlainTextResponse(refusal, 403) if refusal else self.app
        await app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> str | None:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        found = {key: [value for name, value in headers if name == key] for key in ("host", "origin", "sec-fetch-site")}
        if len(found["host"]) != 1 or not self.hosts(host_name(found["host"][0])):
            return "this server answers under its own name and address alone"
        if any(origin != f"http://{found['host'][0]}" for origin in found["origin"]):
            return "this server answers its own page alone"
        if scope["method"] not in ("GET", "HEAD") and "cross-site" in found["sec-fetch-site"]:
            return "this server answers its own page alone"
        return None


def host_name(host: str) -> str:
    """Return a Host header in lower case without its port, or an empty string if it is not valid."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def our_hosts(listening: str) -> Callable[[str], bool]:
    """Return a function that tells whether a host name is one of this server's, given the address it listens on.

    On loopback: localhost and its addresses. Otherwise also `listening`, this machine's name, and every IP address,
    because DNS rebinding needs a name.
    """
    names = {"localhost", "127.0.0.1", "::1", listening.lower()}
    if not is_loopback(listening):
        names.add(socket.gethostname().lower())

    def is_ours(name: str) -> bool:
        return name in names or (not is_loopback(listening) and _is_address(name))

    return is_ours


def is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
