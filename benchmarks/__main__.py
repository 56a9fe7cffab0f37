"""Run all benchmarks and print one table: python -m benchmarks [FILE]

FILE: the table is also written here (runs/benchmarks.md). Each benchmark runs in a separate process.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.tables import HEAD

NAMES = ("network", "prediction", "photograph", "loader", "mask_files", "startup")
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "pillow")
PROJECT = Path(__file__).resolve().parent.parent


def main() -> int:
    if len(sys.argv) > 2 or sys.argv[1:2] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/benchmarks.md")
    lines = HEAD.splitlines()
    print(HEAD, flush=True)
    for name in NAMES:
        with subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{name}"], cwd=PROJECT, stdout=subprocess.PIPE, text=True
        ) as process:
            for line in process.stdout or ():
                if line.startswith("|") and line.rstrip() not in lines[:2]:
                    lines.append(line.rstrip())
                    print(lines[-1], flush=True)
        if process.returncode:
            return process.returncode
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines += ["", f"Measured with Python {platform.python_version()}, {packages}, {os.cpu_count()} cores."]
    print("\n".join(lines[-2:]))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
