"""The folder of a run: what lies where, and how it is written.

config.yml             the resolved config
metrics.jsonl          a line for each record of the loss and each evaluation
events.out.tfevents.*  the same for TensorBoard
samples/               picture sheets of the evaluations
checkpoints/           step_*.pt, the newest few, and last.pt
weights.safetensors    the trained network alone, when the run is done
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.config import Config, save_config
from utils.errors import UserError
from utils.files import write_atomically


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yml"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.pt"
        self.weights = self.path / "weights.safetensors"

    def check_new(self) -> None:
        """UserError where the folder can't take a new run."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run.dir: a file, where the folder of the run is to be: {self.path}")
        if self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(
                f"run.dir: {self.path} is not empty; `python main.py --resume {self.path}` goes on with that run,"
                " or give this one another run.dir"
            )

    def check_resumable(self) -> None:
        """UserError where the folder holds no run that can go on."""
        for path in (self.path, self.config, self.last):
            if not path.exists():
                raise UserError(f"--resume {self.path}: nothing to go on from: {path} does not exist")

    def create(self, config: Config) -> None:
        """Make the folders and save the config."""
        self.samples.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        write_atomically(self.config, lambda temporary: save_config(config, temporary))

    def record(self, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the records behind `step`, which a resumed run will write again, and a line that was cut off."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except ValueError:
                continue
        write_atomically(self.metrics, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8"))

    def save_picture(self, step: int, pixels: np.ndarray) -> None:
        """Write a picture sheet, uint8 (H,W,3), of an evaluation."""
        picture = Image.fromarray(pixels)
        target = self.samples / f"step_{step:08d}.png"
        write_atomically(target, lambda temporary: picture.save(temporary, format="PNG"))

    def save_checkpoint(self, checkpoint: dict[str, Any], keep: int) -> Path:
        """Write step_*.pt, let last.pt be the same file, and remove all but the newest `keep`."""
        from utils.checkpoint import save_checkpoint  # imports torch, which a wrong start need not wait for

        path = self.checkpoints / f"step_{checkpoint['step']:08d}.pt"
        save_checkpoint(path, checkpoint)
        write_atomically(self.last, lambda temporary: _link_or_copy(path, temporary))
        for old in sorted(self.checkpoints.glob("step_*.pt"))[:-keep]:
            old.unlink()
        return path

    def load_last(self) -> dict[str, Any]:
        """The newest checkpoint."""
        from utils.checkpoint import load_checkpoint

        return load_checkpoint(self.last)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
