"""The folder of a run: what lies where, and how it is written.

config.yml             the resolved config; where it lies, a run has begun
metrics.jsonl          a line for each record of the loss and each evaluation
events.out.tfevents.*  the same for TensorBoard
samples/               picture sheets of the evaluations
images.*.list          the images of data.train and data.val, packed
masks.*.list           the masks of masks.train_dir and masks.val_dir, likewise
bad_files.txt          pictures that could not be read, with step and reason
checkpoints/           step_*.pt, the newest few, last.pt, and best.pt by held-out L1
weights.safetensors    the trained network alone, when the run is done
lock                   the process that writes here, or was the last to, and who launched it
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

# All that a start which was killed can leave before the run has begun: the next start may write over it.
_UNBEGUN = re.compile(
    r"lock|(images|masks)\.(train|val)\.list|samples|checkpoints(/step_00000000\.pt|/last\.pt|/\..*\.tmp)?|\..*\.tmp"
)
_STEP = re.compile(r"step_(\d{8,})\.pt")  # the names of checkpoints; a copy with another name is the user's own


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
        # One file of events for each start, as TensorBoard wants to have it.
        self._events = self.path / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self.chosen: Path | None = None  # the checkpoint to go on from, where it is not to be the newest
        self._lock: IO[str] | None = None
        self._signature = ""
        self._lock_path = self.path / "lock"
        self._failed_logs: set[str] = set()

    # --- a run begins or goes on ---------------------------------------------------------------------------------

    def check_new(self) -> None:
        """UserError where the folder can't take a new run."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run.dir: a file, where the folder of the run is to be: {self.path}")
        inside = self.path.rglob("*") if self.path.is_dir() else iter(())
        if any(not _UNBEGUN.fullmatch(path.relative_to(self.path).as_posix()) for path in inside):
            raise UserError(
                f"run.dir: {self.path} is not empty; `python main.py --resume {self.path}` goes on with that run,"
                " or give this one another run.dir"
            )

    def check_resumable(self) -> None:
        """UserError where the folder holds no run that can go on."""
        for path in (self.path, self.config, self.checkpoints):
            if not path.exists():
                raise UserError(f"--resume {self.path}: nothing to go on from: {path} does not exist")

    def lock(self) -> None:
        """Keep other processes from this folder until `close`, or until this one ends. UserError where one is there."""
        file = open(self._lock_path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            if fcntl is None:
                raise OSError("the system has no file locks")
            # Not flock: data workers inherit that, and live on for seconds where the main process is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # one or the other, says POSIX
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
        """UserError where the folder at this path is no longer the one that this process has locked."""
        if self._lock is None:
            return
        try:
            if os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self._lock_path)):
                return
            if self._lock_path.read_text(encoding="utf-8", errors="replace") == self._signature:
                return  # a file system whose numbers of files change
        except FileNotFoundError:
            pass
        raise UserError(
            f"{self.path} is no longer the folder that this run has locked: it was moved, removed or replaced."
            " Nothing more is written; `python main.py --resume` goes on where it lies now"
        )

    def begun_by_launcher(self) -> bool:
        """Whether the same torchrun that started this process began the run, or went on with it."""
        with contextlib.suppress(OSError):
            lines = self._lock_path.read_text(encoding="utf-8", errors="replace").splitlines()
            return self.config.exists() and lines[2:] == [launcher()]
        return False

    def close(self) -> None:
        """Give the lock back, if this process has it."""
        if self._lock:
            self._lock.close()
        self._lock = None

    def create(self) -> None:
        """Make the folders of a new run and lock them."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        self.check_new()  # another process may have been quicker
        self.checkpoints.mkdir(exist_ok=True)
        sync_folder(self.path.parent)

    def start(self, config: Config, step: int) -> None:
        """Save the config, and with it begin the run or go on with it behind `step`."""
        self.check_is_ours()
        self.samples.mkdir(exist_ok=True)
        for folder in (self.path, self.samples, self.checkpoints):
            remove_temporaries(folder)
        write_atomically(self.config, lambda temporary: save_config(config, temporary))
        with self._log("events for TensorBoard"):
            append(self._events, start_event(step + 1))

    def rewind(self, step: int, keep: int) -> None:
        """Go back to `step`: last.pt is the checkpoint that was chosen; the records behind go, and a cut-off line.

        keep: so many step_*.pt up to this step stay.
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

    # --- logs: where they can't be written the run goes on -------------------------------------------------------

    def record(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl, and the same numbers to TensorBoard's events. kind: train or val."""
        values = {f"{kind}/{name}": value for name, value in values.items()}
        with self._log("metrics.jsonl"):
            append(self.metrics, (json.dumps({"step": step, **values}) + "\n").encode())
        with self._log("events for TensorBoard"):
            append(self._events, scalar_events(step, values))

    def record_validation(self, step: int, metrics: dict[str, float], picture: np.ndarray | None) -> None:
        """Record the metrics and the sheet of an evaluation, and say the metrics on the terminal."""
        self.record(step, "val", metrics)
        if picture is not None:
            self.save_picture(step, picture)
        text = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        tqdm.write(f"step {step}: held-out {text}")

    def save_picture(self, step: int, pixels: np.ndarray) -> None:
        """Write a picture sheet, uint8 (H,W,3), of an evaluation; into TensorBoard's events, too."""
        picture = Image.fromarray(pixels)
        target = self.samples / f"step_{step:08d}.png"
        with self._log("samples"):
            write_atomically(target, lambda temporary: picture.save(temporary, format="PNG"))
        with self._log("events for TensorBoard"):
            append(self._events, image_event(step, "val/pictures", pixels))

    @contextlib.contextmanager
    def _log(self, name: str) -> Iterator[None]:
        """What can't be written inside costs one warning for each log. UserError where the folder is not ours."""
        try:
            self.check_is_ours()
            yield
        except OSError as error:
            if name not in self._failed_logs:
                self._failed_logs.add(name)
                reason = f"{error.strerror or error}: {error.filename or self.path}"
                self.warn(f"{name} can't be written, the run goes on: {reason}")

    def warn(self, message: str) -> None:
        """Say a line on stderr, beside the progress bar."""
        tqdm.write(f"warning: {message}", file=sys.stderr)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def save_state(self, state: dict[str, Any], config: Config, best: bool = False) -> None:
        """Write a checkpoint of a TrainState's state_dict, with its config. Errors as of save_checkpoint."""
        self.save_checkpoint({**state, "config": config_to_dict(config)}, config.train.keep_checkpoints, best)

    def save_checkpoint(self, checkpoint: dict[str, Any], keep: int, best: bool = False) -> None:
        """Write step_*.pt, let last.pt and, for the best so far, best.pt be the same file; keep so many step_*.pt.

        Those that stay are the newest up to this step; any behind it are of a run that was taken back. UserError where
        there is no room: every older checkpoint is then as it was.
        """
        self.check_is_ours()
        step = checkpoint["step"]
        path = self.checkpoints / f"step_{step:08d}.pt"
        # best.pt first: who goes on from one of the others finds the best.pt that it tells of.
        first = self.best if best else path
        try:
            save_checkpoint(first, checkpoint)
            for other in (path, self.last) if best else (self.last,):
                write_atomically(other, lambda temporary: _link_or_copy(first, temporary))
        except OSError as error:
            how = f"the older ones are as they were: make room, then `python main.py --resume {self.path}`"
            if not self.config.exists():
                how = "nothing is lost: make room, then start the run again by the same command"
            raise UserError(
                f"the checkpoint of step {step} can't be written: {error.strerror or error}: {error.filename}; {how}"
            ) from None
        kept = [old for old in self._steps() if _step_in(old) <= step][:keep]
        for old in self._steps():
            if old not in kept:
                old.unlink()

    def load_newest(self, check: Callable[[dict[str, Any], Path], None]) -> tuple[dict[str, Any], Path]:
        """The checkpoint that was chosen, else the newest whole one: last.pt, or a step_*.pt. And its path.

        check: raises a UserError where the values of a checkpoint don't fit. UserError where none is whole. Each that
        is damaged is told of, by the one process that has locked the folder.
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
                self.warn(f"{message}; going on from {path}, step {checkpoint['step']}")
            return checkpoint, path
        raise UserError(f"--resume {self.chosen or self.path}: no checkpoint is whole: {'; '.join(damaged)}")

    def best_is_of(self, step: int) -> bool:
        """Whether best.pt is there and of a step up to this one."""
        best = step_of(self.best)
        return best is not None and best <= step

    def train_losses(self) -> list[tuple[int, float]]:
        """Step and total loss of each record of the training."""
        losses = []
        with contextlib.suppress(OSError):
            for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    record = json.loads(line)
                    losses.append((int(record["step"]), float(record["train/total"])))
        return losses

    def checkpoints_newest_first(self) -> list[tuple[int, Path]]:
        """Step and path of each step_*.pt, and at the end of best.pt."""
        best = step_of(self.best)
        return [(_step_in(path), path) for path in self._steps()] + ([] if best is None else [(best, self.best)])

    def _steps(self) -> list[Path]:
        """step_*.pt, the newest first."""
        paths = [path for path in self.checkpoints.glob("step_*.pt") if _STEP.fullmatch(path.name)]
        return sorted(paths, key=_step_in, reverse=True)


def launcher() -> str:
    """Who started this process: torchrun is the same one when it starts processes again."""
    return f"launched by {os.getppid()} as {os.environ.get('TORCHELASTIC_RUN_ID', 'itself')}"


def _step_in(path: Path) -> int:
    """The step in the name of a checkpoint."""
    found = _STEP.fullmatch(path.name)
    assert found
    return int(found[1])


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
