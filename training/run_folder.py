"""The folder of a run: its files, and how they are written.

config.yml             the resolved config; if it exists, the run has begun
metrics.jsonl          one line per record of the loss and per evaluation
events.out.tfevents.*  the same for TensorBoard
samples/               picture sheets of the evaluations
images.*.list          the images of data.train and data.val, packed
masks.*.list           the masks of masks.train_dir and masks.val_dir, packed
bad_files.txt          images that could not be read, with step and reason
checkpoints/           the newest step_*.pt, last.pt, and best.pt (lowest held-out L1)
weights.safetensors    only the trained network, written when the run is done
lock                   the current or last process that writes here, and its launcher
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from training.events import image_event, scalar_events, start_event
from utils.checkpoint import load_checkpoint, save_checkpoint, step_of
from utils.config import Config
from utils.config_files import CONFIG_NAME, config_to_dict, save_config
from utils.errors import UserError
from utils.files import append, remove_temporaries, sync_folder, write_atomically

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

# Everything that a killed start can leave before the run has begun. The next start may overwrite it.
_UNBEGUN = re.compile(
    r"lock|(images|masks)\.(train|val)\.list|samples|checkpoints(/step_00000000\.pt|/last\.pt|/\..*\.tmp)?|\..*\.tmp"
)
_STEP = re.compile(r"step_(\d{8,})\.pt")  # names of checkpoints; copies with other names are the user's


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / CONFIG_NAME
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.train_list = self.path / "images.train.list"
        self.val_list = self.path / "images.val.list"
        self.train_masks = self.path / "masks.train.list"
        self.val_masks = self.path / "masks.val.list"
        self.lists = (self.train_list, self.val_list, self.train_masks, self.val_masks)
        self.bad_files = self.path / "bad_files.txt"
        self.last = self.checkpoints / "last.pt"
        self.best = self.checkpoints / "best.pt"
        self.weights = self.path / "weights.safetensors"
        # One event file per start, as TensorBoard expects.
        self._events = self.path / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self.chosen: Path | None = None  # the checkpoint to resume from; None: the newest
        self._lock: IO[str] | None = None
        self._signature = ""
        self._lock_path = self.path / "lock"
        self._failed_logs: set[str] = set()

    # --- begin or resume -----------------------------------------------------------------------------------------

    def check_new(self) -> None:
        """Raise UserError if the folder cannot hold a new run."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run.dir: must be a folder, but is a file: {self.path}; name another")
        inside = self.path.rglob("*") if self.path.is_dir() else iter(())
        if any(not _UNBEGUN.fullmatch(path.relative_to(self.path).as_posix()) for path in inside):
            raise UserError(
                f"run.dir: {self.path} is not empty; to resume its run: `python main.py --resume {self.path}`;"
                " for a new run set another run.dir"
            )

    def check_resumable(self) -> None:
        """Raise UserError if the folder holds no run to resume."""
        for path in (self.path, self.config, self.checkpoints):
            if not path.exists():
                raise UserError(f"--resume {self.path}: no run to resume: {path} does not exist")

    def lock(self) -> None:
        """Lock the folder until `close` or the end of this process. Raises UserError if another process holds it."""
        file = open(self._lock_path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            if fcntl is None:
                raise OSError("the system has no file locks")
            # Not flock: data workers inherit it, and outlive a killed main process by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            file.seek(0)
            holder = file.readline(200).strip() or "another process"
            file.close()
            raise UserError(f"{self.path} is in use: {holder} writes there; stop it first, or wait") from None
        except OSError as error:
            self.warn(f"{self.path} can't be locked here ({error}); don't start a second run in it")
        file.seek(0)
        file.truncate()
        self._signature = f"process {os.getpid()} on {socket.gethostname()}\n{uuid.uuid4().hex}\n{launcher()}\n"
        file.write(self._signature)
        file.flush()
        self._lock = file

    def check_is_ours(self) -> None:
        """Raise UserError if the folder at this path is no longer the one that this process locked."""
        if self._lock is None:
            return
        try:
            if os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self._lock_path)):
                return
            if self._lock_path.read_text(encoding="utf-8", errors="replace") == self._signature:
                return  # some file systems change inode numbers
        except FileNotFoundError:
            pass
        raise UserError(
            f"{self.path} is no longer the folder that this run has locked: it was moved, removed or replaced."
            " Nothing more is written; if it was moved, resume with `python main.py --resume` and its new path"
        )

    def begun_by_launcher(self) -> bool:
        """Return whether the torchrun that started this process also began or resumed the run."""
        with contextlib.suppress(OSError):
            lines = self._lock_path.read_text(encoding="utf-8", errors="replace").splitlines()
            return self.config.exists() and lines[2:] == [launcher()]
        return False

    def close(self) -> None:
        """Release the lock, if this process holds it."""
        if self._lock:
            self._lock.close()
        self._lock = None

    def create(self) -> None:
        """Create and lock the folder of a new run. Raises UserError if another process was faster."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        self.check_new()  # another process may have begun a run here meanwhile
        self.checkpoints.mkdir(exist_ok=True)
        sync_folder(self.path.parent)

    def start(self, config: Config, step: int) -> None:
        """Save the config, which marks the run as begun, and open the event file of the steps after `step`."""
        self.check_is_ours()
        self.samples.mkdir(exist_ok=True)
        for folder in (self.path, self.samples, self.checkpoints):
            remove_temporaries(folder)
        write_atomically(self.config, lambda temporary: save_config(config, temporary))
        with self._log("events for TensorBoard"):
            append(self._events, start_event(step + 1))

    def rewind(self, step: int, keep: int) -> None:
        """Rewind to `step`: last.pt becomes the chosen checkpoint; later records and a truncated line are removed.

        keep: how many step_*.pt up to this step to keep.
        """
        if self.chosen and self.chosen != self.last:
            chosen = self.chosen
            write_atomically(self.last, lambda temporary: _link_or_copy(chosen, temporary))
        for old in [path for path in self._steps() if _step_in(path) <= step][keep:]:
            old.unlink()
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        write_atomically(self.metrics, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8"))

    # --- logs: the run continues if they cannot be written -------------------------------------------------------

    def record(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl and the same numbers to the TensorBoard events. kind: train or val."""
        values = {f"{kind}/{name}": value for name, value in values.items()}
        with self._log("metrics.jsonl"):
            append(self.metrics, (json.dumps({"step": step, **values}) + "\n").encode())
        with self._log("events for TensorBoard"):
            append(self._events, scalar_events(step, values))

    def record_validation(self, step: int, metrics: dict[str, float], picture: np.ndarray | None) -> None:
        """Record the metrics and the picture sheet of an evaluation, and print the metrics."""
        self.record(step, "val", metrics)
        if picture is not None:
            self.save_picture(step, picture)
        text = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        tqdm.write(f"step {step}: held-out {text}")

    def save_picture(self, step: int, pixels: np.ndarray) -> None:
        """Write the picture sheet of an evaluation, uint8 (H,W,3), to samples/ and to the TensorBoard events."""
        picture = Image.fromarray(pixels)
        target = self.samples / f"step_{step:08d}.png"
        with self._log("samples"):
            write_atomically(target, lambda temporary: picture.save(temporary, format="PNG"))
        with self._log("events for TensorBoard"):
            append(self._events, image_event(step, "val/pictures", pixels))

    @contextlib.contextmanager
    def _log(self, name: str) -> Iterator[None]:
        """Turn OSErrors inside into one warning per log. Raises UserError if the folder is no longer ours."""
        try:
            self.check_is_ours()
            yield
        except OSError as error:
            if name not in self._failed_logs:
                self._failed_logs.add(name)
                reason = f"{error.strerror or error}: {error.filename or self.path}"
                self.warn(f"{name} can't be written; the run continues: {reason}")

    def warn(self, message: str) -> None:
        """Print a warning to stderr without breaking the progress bar."""
        tqdm.write(f"warning: {message}", file=sys.stderr)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def save_state(self, state: dict[str, Any], config: Config, best: bool = False) -> None:
        """Write a TrainState's state_dict with its config. Raises the errors of save_checkpoint."""
        self.save_checkpoint({**state, "config": config_to_dict(config)}, config.train.keep_checkpoints, best)

    def save_checkpoint(self, checkpoint: dict[str, Any], keep: int, best: bool = False) -> None:
        """Write step_*.pt and link last.pt to it, and best.pt if `best`. Keep the `keep` newest step_*.pt.

        Files of later steps, left from before a rewind, are removed. Raises UserError if the disk is full; all older
        checkpoints are then unchanged.
        """
        self.check_is_ours()
        step = checkpoint["step"]
        path = self.checkpoints / f"step_{step:08d}.pt"
        # best.pt first, so that a resume from one of the others finds the best.pt that it refers to.
        first = self.best if best else path
        try:
            save_checkpoint(first, checkpoint)
            for other in (path, self.last) if best else (self.last,):
                write_atomically(other, lambda temporary: _link_or_copy(first, temporary))
        except OSError as error:
            how = f"older ones are intact: free disk space, then `python main.py --resume {self.path}`"
            if not self.config.exists():
                how = "nothing is lost: free disk space, then start the run again with the same command"
            raise UserError(
                f"the checkpoint of step {step} can't be written: {error.strerror or error}: {error.filename}; {how}"
            ) from None
        kept = [old for old in self._steps() if _step_in(old) <= step][:keep]
        for old in self._steps():
            if old not in kept:
                old.unlink()

    def load_newest(self, check: Callable[[dict[str, Any], Path], None]) -> tuple[dict[str, Any], Path]:
        """Return the chosen checkpoint, or else the newest intact one (last.pt, step_*.pt, best.pt), and its path.

        check: raises UserError if the values of a checkpoint do not match. Raises UserError if none is intact. The
        process that holds the lock warns of each damaged one.
        """
        damaged: list[str] = []
        for path in (self.chosen,) if self.chosen else (self.last, *self._steps(), self.best):
            try:
                checkpoint = load_checkpoint(path)
                check(checkpoint, path)
            except UserError as error:
                damaged.append(str(error))
                continue
            for message in damaged if self._lock else ():
                self.warn(f"{message}; resuming from {path}, step {checkpoint['step']}")
            return checkpoint, path
        raise UserError(f"--resume {self.chosen or self.path}: no checkpoint is intact: {'; '.join(damaged)}")

    def best_is_of(self, step: int) -> bool:
        """Return whether best.pt exists and is from this step or an earlier one."""
        best = step_of(self.best)
        return best is not None and best <= step

    def train_losses(self) -> list[tuple[int, float]]:
        """Return step and total loss of each training record."""
        losses = []
        with contextlib.suppress(OSError):
            for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    record = json.loads(line)
                    losses.append((int(record["step"]), float(record["train/total"])))
        return losses

    def checkpoints_newest_first(self) -> list[tuple[int, Path]]:
        """Return step and path of each step_*.pt, then those of best.pt."""
        best = step_of(self.best)
        return [(_step_in(path), path) for path in self._steps()] + ([] if best is None else [(best, self.best)])

    def _steps(self) -> list[Path]:
        """Return the paths of step_*.pt, newest first."""
        paths = [path for path in self.checkpoints.glob("step_*.pt") if _STEP.fullmatch(path.name)]
        return sorted(paths, key=_step_in, reverse=True)


def launcher() -> str:
    """Return a text that identifies the launcher. A torchrun keeps it when it restarts its processes."""
    return f"launched by {os.getppid()} as {os.environ.get('TORCHELASTIC_RUN_ID', 'itself')}"


def _step_in(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    found = _STEP.fullmatch(path.name)
    assert found
    return int(found[1])


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
