"""Write the page as a folder for any static host. See `python build_site.py --help`."""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.arguments import path_argument
from utils.errors import UserError, reports_user_errors
from utils.startup import import_torch

PROJECT = Path(__file__).resolve().parent
PAGE = PROJECT / "app"
STATIC = PROJECT / "static"  # what differs without a server, and the version of onnxruntime-web
LIBRARY = STATIC / "node_modules" / "onnxruntime-web"
LIBRARY_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs")
LIBRARY_CODE = "ort-wasm-simd-threaded.wasm"

# A static host sends no policy, so the page contains it. The network needs wasm-unsafe-eval.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:;"
    " connect-src 'self'; worker-src 'self' blob:; form-action 'none'; base-uri 'none'"
)


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    if args.model is not None and not args.model.is_file():
        raise UserError(f"--model: no such file: {args.model}")
    check_output(args.out)
    fetch_library()

    import_torch()
    from model.site import write_network

    args.out.mkdir(parents=True, exist_ok=True)
    copy_page(args.out)
    write_network(args.model, args.out)
    files = [path for path in args.out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    print(f"{args.out}: {len(files)} files, {size:.1f} MB. To view it: python -m http.server --directory {args.out}")
    return 0


def check_output(out: Path) -> None:
    """Raise UserError if --out exists and is neither an empty folder nor an earlier site."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: must be a folder: {out}")
    if out.is_dir() and any(out.iterdir()) and not (out / "network.json").is_file():
        raise UserError(f"--out: {out} is neither empty nor a page that build_site.py wrote; name another folder")


def fetch_library() -> None:
    """Fetch onnxruntime-web by npm, as pinned in static/package-lock.json, unless present.

    Raises UserError if npm is missing or fails.
    """
    if all((LIBRARY / "dist" / name).is_file() for name in (*LIBRARY_FILES, LIBRARY_CODE)):
        return
    if shutil.which("npm") is None:
        raise UserError("npm, which fetches onnxruntime-web, is missing; install Node.js (`apt-get install npm`)")
    print("Fetching onnxruntime-web by npm.", flush=True)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    result = subprocess.run(command, cwd=STATIC, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        reason = " ".join(result.stderr.split())[:300]
        raise UserError(f"npm could not fetch onnxruntime-web: {reason}")


def copy_page(out: Path) -> None:
    """Copy the page of app.py, with the in-browser filler instead of the server, and with POLICY in a meta element."""
    for source in sorted(PAGE.iterdir()):
        shutil.copyfile(source, out / source.name)
    for name in ("filler.js", "worker.js", "base.js"):
        shutil.copyfile(STATIC / name, out / name)
    (out / "message.js").unlink()  # only talks to the server
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    mark = '<meta charset="utf-8">\n'
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    (out / "index.html").write_text(page.replace(mark, mark + policy, 1), encoding="utf-8")
    (out / "ort").mkdir(exist_ok=True)
    for name in LIBRARY_FILES:
        shutil.copyfile(LIBRARY / "dist" / name, out / "ort" / name)
    code = (LIBRARY / "dist" / LIBRARY_CODE).read_bytes()
    (out / "ort" / f"{LIBRARY_CODE}.gz").write_bytes(gzip.compress(code, mtime=0))  # not every host compresses


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write the page as a folder for any static host: the network then runs in the visitor's browser.",
        epilog="example: python build_site.py --model runs/demo/weights.safetensors --out site",
    )
    parser.add_argument(
        "--model",
        type=path_argument,
        metavar="CKPT",
        help="a checkpoint or weights file (default: the shipped weights)",
    )
    parser.add_argument(
        "--out", type=path_argument, default=Path("site"), metavar="DIR", help="folder to write (default: site)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
