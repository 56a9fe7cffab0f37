"""Serve the page on which holes in photographs are painted and filled. See `python app.py --help`."""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import webbrowser
from collections.abc import Sequence

from evaluation.models import name_models
from utils.errors import UserError, reports_user_errors


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    models = name_models(args.model)
    try:
        from serving.server import Settings, Worker, is_loopback, make_server, our_hosts, serve
    except ImportError as error:
        raise UserError(
            f"the page needs starlette and uvicorn, but {error.name} is missing; `pip install -r requirements-app.txt`"
        ) from None

    with listen(args.host, args.port) as listening:
        worker = Worker(Settings(models, args.device))
        try:
            if not is_loopback(args.host):
                print(
                    f"warning: --host {args.host} lets everyone who can reach this machine use the page: there is no"
                    " password, and photographs travel unencrypted; leave --host out unless you trust the network",
                    file=sys.stderr,
                )
            host = "localhost" if is_loopback(args.host) else f"[{args.host}]" if ":" in args.host else args.host
            url = f"http://{host}:{listening.getsockname()[1]}"
            print(f"{url}  (Ctrl-C stops it)", flush=True)
            if not args.no_browser:
                webbrowser.open(url)
            server = make_server(worker, our_hosts(args.host))
            with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is the usual way to stop
                serve(server, listening)
        finally:
            worker.stop()
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises UserError if the address is unavailable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"can't listen on --host {host}, --port {port}: {reason}; give another, or --port 0") from None


def port_number(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at most 65535")
    return int(text)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Serve a page for painting and filling holes in photographs, by default to this machine only.",
        epilog="example: python app.py --model runs/demo/weights.safetensors",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]CKPT",
        help="a checkpoint or weights file, or `shipped` (default); repeatable: the page then offers a choice",
    )
    parser.add_argument(
        "--port", type=port_number, default=7860, help="port to listen on, 0 for a free one (default: 7860)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute (default: auto)"
    )
    parser.add_argument("--no-browser", action="store_true", help="don't open the page in a browser")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
