"""Mutation tests of the core: each row breaks one line of the code in a copy of the project and runs its tests.

`python -m tests.mutations [N …]` runs all rows, or only rows N, and lists the mutations that no test detects. It takes
minutes, so `make test` does not run it; test_mutations.py checks that each row still matches the code.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest
from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "runs", "datasets", "site", "node_modules", "__pycache__", ".*_cache"
)


LIBRARIES = (
    "torch",
    "cv2",
    "skimage.data",
    "yaml",
    "pydantic",
    "safetensors.torch",
    "torch.utils.tensorboard",
)


class Mutation(NamedTuple):
    file: str
    line: str  # occurs once in the file
    broken: str
    tests: str  # the files under tests/ that detect it


NETWORK = "test_layer.py test_network.py test_convolution.py test_folded.py"
TRAINING = "test_schedule.py test_phases.py test_training.py"
DATA = "test_data.py"

MUTATIONS = [
    # --- layer: Eq. 1 and 2
    Mutation("model/layer.py", "updated_mask * sum_1 / sum_m", "updated_mask * window.numel() / sum_m", NETWORK),
    Mutation("model/layer.py", "sum_m.clamp(min=1)", "sum_m.clamp(min=2)", NETWORK),
    Mutation("model/layer.py", "(sum_m > 0)", "(sum_m > 1)", NETWORK),
    Mutation("model/layer.py", "y = y.mul_(ratio)", "y = y.mul_(ratio).mul_(ratio)", NETWORK),
    Mutation("model/layer.py", "updated_mask.to(y))", "ratio.to(y))", NETWORK),
    Mutation("model/layer.py", "part.masked_fill(m == 0, 0) for", "part * m for", NETWORK),
    Mutation("model/layer.py", "* (part.shape[1] // m.shape[1])", "* part.shape[1]", NETWORK),
    Mutation("model/layer.py", "* up_channels + skip_mask * (skip_channels - self.base_channels)", "* up_channels + skip_mask", NETWORK),
    Mutation("model/layer.py", "torch.promote_types(mask.dtype, torch.float32)", "mask.dtype", NETWORK),
    # --- network: the paper's table
    Mutation("model/network.py", "ENCODER_KERNELS = (7, 5, 5)", "ENCODER_KERNELS = (7, 5, 3)", NETWORK),
    Mutation("model/network.py", "LEAK = 0.2", "LEAK = 0.1", NETWORK),
    Mutation("model/network.py", "min(2**level, 8)", "min(2**level, 16)", NETWORK),
    Mutation("model/network.py", "self.bn(y).mul_(mask)", "self.bn(y)", NETWORK),
    Mutation("model/network.py", "slope=LEAK if i > 0 else None", "slope=LEAK", NETWORK),
    Mutation("model/network.py", "bn.requires_grad_(not frozen)", "pass", NETWORK),
    Mutation("model/network.py", "a=1 if slope is None else slope", "a=1", NETWORK),
    Mutation("model/network.py", "scale * bn.running_mean", "bn.running_mean", NETWORK),
    Mutation("model/network.py", "nn.init.zeros_(last.conv.weight)", "pass", "test_base.py"),
    Mutation("model/network.py", "in state_dict), \"none\")", "in {}), \"none\")", "test_base.py"),
    Mutation("model/network.py", "min(PLATE_LEVELS, depth)", "PLATE_LEVELS", "test_regions.py"),
    Mutation("model/network.py", "F.avg_pool2d(base, 2)", "base[..., ::2, ::2]", "test_base.py"),
    Mutation("model/network.py", "x = x.clamp(-limit, limit)", "pass", "test_base.py"),
    Mutation("model/network.py", "_cut(limit, crops[0].skip)", "limit[..., : x.shape[2], : x.shape[3]]", "test_regions.py"),
    Mutation("model/network.py", "torch.cat([x, base], 1)", "torch.cat([base, x], 1)", "test_base.py"),
    Mutation("model/layer.py", "valid + self.base_channels if", "valid if", "test_base.py"),
    Mutation("model/filler.py", "values + base[", "values + 0 * base[", "test_regions.py"),
    Mutation("model/filler.py", "not reach or holes[0] == holes[1]", "True", "test_regions.py"),
    Mutation("model/filler.py", "box.pixels - int(self.valid[box.slices].sum())", "int((~self.valid[box.slices]).sum())", "test_regions.py"),
    Mutation("model/filler.py", "Span(start - reach, stop + reach)", "Span(start - reach // 2, stop + reach // 2)", "test_regions.py"),
    Mutation("model/filler.py", "start + step * (start > 0), max", "start, max", "test_regions.py"),
    Mutation("model/octaves.py", "known / 4)", "known)", "test_octaves.py"),
    Mutation("model/octaves.py", "max(_LEAST_RADIUS, known", "max(0.5, known", "test_octaves.py"),
    # --- Muon
    Mutation("training/muon.py", "gradient.lerp(average, momentum)", "average", "test_muon.py"),
    Mutation("training/muon.py", "max(update.shape) ** 0.5", "update.shape[0] ** 0.5", "test_muon.py"),
    Mutation("training/muon.py", "kernel.grad = None", "pass", "test_muon.py"),
    Mutation("training/muon.py", "return orthogonalised(matrix.T).T", "return matrix", "test_muon.py"),
    Mutation("training/muon.py", "torch.optim.Optimizer.__setstate__(self, state)", "super().__setstate__(state)", "test_training.py"),
    # --- base
    Mutation("model/base.py", "count.clamp(min=1)", "4", "test_base.py"),
    Mutation("model/base.py", "(count > 0)", "(count > 1)", "test_base.py"),
    Mutation("model/base.py", "torch.where(mask > 0, x, finer", "torch.where(mask > 1, x, finer", "test_base.py"),
    Mutation("model/base.py", "((x - mean) * mask)", "(x - mean)", "test_base.py"),
    Mutation("model/base.py", "(variance.sqrt() / divisor**2)", "variance.sqrt()", "test_base.py"),
    Mutation("model/base.py", ".clamp(max=1), 1)", ", 1)", "test_base.py"),
    Mutation("model/base.py", "torch.where(share > 0, (", "torch.where(share > -1, (", "test_base.py"),
    Mutation("model/base.py", "_laplacian(_laplacian(u))", "_laplacian(u).neg()", "test_base.py"),
    Mutation("model/base.py", "mode=\"replicate\"", "", "test_base.py"),
    Mutation("model/base.py", "level < relaxed_levels", "level <= relaxed_levels", "test_base.py"),
    Mutation("model/base.py", "sum(2 * PLATE", "2 * sum(2 * PLATE", "test_base.py"),
    Mutation("model/base.py", "2 if number == 1 else 4", "4", "test_base.py"),
    Mutation("model/base.py", "int(found[-1]) + 3", "int(found[-1]) + 2", "test_base.py"),
    Mutation("model/base.py", "2 * PLATE_STEPS << level", "PLATE_STEPS << level", "test_base.py"),
    # --- loss: Eq. 3 to 7
    Mutation("loss.py", '"valid": (mask * difference).mean()', '"valid": (mask * difference).sum() / mask.sum()', "test_loss.py"),
    Mutation("loss.py", '"hole": ((1 - mask)', '"hole": (mask', "test_loss.py"),
    Mutation("loss.py", "torch.cat([output, comp])", "torch.cat([output, output])", "test_loss.py"),
    Mutation("loss.py", "/ (c * h * w)", "/ (h * w)", "test_loss.py"),
    Mutation("loss.py", "F.max_pool2d(1 - mask, 3, stride=1, padding=1)", "1 - mask", "test_loss.py"),
    Mutation("loss.py", "(image[..., :, 1:] - image[..., :, :-1])", "(image[..., :, :1] - image[..., :, -1:])", "test_loss.py"),
    Mutation("loss.py", "/ image.numel()", "/ region.sum()", "test_loss.py"),
    Mutation("loss.py", "return count * difference", "return difference", "test_loss.py"),
    Mutation("loss.py", "weights[name] for name in TERMS if weights.get(name)}", "weights.get(name, 0) for name in TERMS}", "test_loss.py test_phases.py"),
    Mutation("loss.py", "(output - image).square()", "(output - image).abs()", "test_loss.py"),
    Mutation("model/composite.py", "torch.where(mask > 0, image, output)", "torch.where(mask > 0, output, image)", "test_loss.py"),
    Mutation("model/vgg.py", "(image - self.mean) / self.std", "image", "test_network.py"),
    Mutation("model/vgg.py", "self.requires_grad_(False)", "pass", "test_network.py"),
    # --- schedule, state
    Mutation("data/schedule.py", "(done + 1) / self.warmup", "done / self.warmup", TRAINING),
    Mutation("data/schedule.py", "(1 + math.cos(math.pi * progress)) / 2", "(1 - progress)", TRAINING),
    Mutation("data/schedule.py", "sample += phase.steps * size", "sample += phase.steps * config.train.batch_size", TRAINING),
    Mutation("data/schedule.py", "if phase.first_sample <= sample)", "if phase.first_sample < sample)", TRAINING),
    Mutation("training/state.py", "(~finite).float()", "torch.zeros_like(finite).float()", TRAINING),
    Mutation("training/state.py", "elif finite:", "else:", TRAINING),
    Mutation("training/state.py", 'metrics["l1_percent"] < self.best', 'metrics["l1_percent"] > self.best', "test_faults.py test_training.py"),
    Mutation("training/state.py", 'state["ema"] = ', 'state["emma"] = ', TRAINING),
    Mutation("training/setup.py", "state.step == phase.first_step and", "", TRAINING),
    Mutation("training/setup.py", "(phase.freeze_encoder_batch_norm)", "(False)", TRAINING),
    Mutation("main.py", "/ config.train.accumulate", "", "test_training.py test_distributed.py"),
    Mutation("main.py", "state.set_lr(phase.lr_at(state.step))", "phase.lr", TRAINING),
    # --- data
    Mutation("data/order.py", "[purpose, number, seed]", "[purpose, number]", DATA),
    Mutation("data/order.py", "_ROUNDS = 8", "_ROUNDS = 1", DATA),
    Mutation("data/samples.py", "(SHUFFLE, epoch, self.seed)", "(SHUFFLE, self.seed)", DATA),
    Mutation("data/samples.py", "if rng.random() < 0.5", "if rng.random() < 1.5", DATA),
    Mutation("data/augment.py", "cv2.erode(mask, np.ones((side", "cv2.dilate(mask, np.ones((side", DATA),
    Mutation("data/augment.py", "1 - mask + surrounded", "surrounded", DATA),
    Mutation("data/augment.py", "2 * width + 1, 2 * width + 1", "width + 1, width + 1", DATA),
    Mutation("data/augment.py", "rng.random() < outlines", "rng.random() > outlines", DATA),
    Mutation("data/augment.py", "turn[:, 0] *= mirrored", "pass", DATA),
    Mutation("data/augment.py", "short * rng.uniform(0.7, 1.0)", "short * rng.uniform(0.3, 1.0)", DATA),
    Mutation("data/augment.py", 'size if unit == "image_size" else 1', "1", DATA + " test_phases.py test_schedule.py"),
    Mutation("data/augment.py", "int(rng.integers(height - side + 1))\n        return", "0\n        return", DATA + " test_phases.py"),
    Mutation("data/mask_files.py", "valid = grey >= cut if", "valid = grey < cut if", DATA + " test_masks.py test_mask_rules.py"),
    Mutation("data/images.py", "3: Image.Transpose.ROTATE_180", "3: Image.Transpose.ROTATE_90", "test_images.py test_readers.py"),
    Mutation("data/loader.py", "shares[rank::world_size]", "shares[: len(shares) // world_size]", "test_distributed.py test_data.py"),
    Mutation("data/holes.py", "canvas, area), side), pixels)", "canvas, area), side), pixels + 1)", "test_masks.py"),
    # --- metrics and checkpoints
    Mutation("evaluation/metrics.py", "return 100 * float(np.mean(np.abs", "return float(np.mean(np.abs", "test_metrics.py"),
    Mutation("evaluation/metrics.py", "hole = mask == 0", "hole = mask == 1", "test_metrics.py test_evaluate.py"),
    Mutation("utils/checkpoint.py", "return comment == _MARK + _digest", "return True or _digest", "test_faults.py"),
    Mutation("utils/checkpoint.py", "write_atomically(path, write)", "write(path)", "test_faults.py"),
    Mutation("utils/files.py", "os.replace(", "shutil.copyfile(", "test_faults.py test_masks.py"),
]  # fmt: skip


def survives(mutation: Mutation, copy: Path) -> bool:
    """Return whether no test detects the mutation. Restores the copy of the project."""
    path = copy / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutation.line, mutation.broken), encoding="utf-8")
    try:
        code = exit_code(copy, [f"tests/{name}" for name in mutation.tests.split() if (copy / "tests" / name).exists()])
    finally:
        path.write_text(text, encoding="utf-8")
    if code not in (0, 1, 2):  # 2: a module no longer imports
        raise RuntimeError((copy / "output.txt").read_text(encoding="utf-8", errors="replace")[-3000:])
    return code == 0


def exit_code(copy: Path, tests: list[str]) -> int:
    """Return pytest's exit code for tests of the copy; negative after a timeout.

    Runs in a fork of this process, which has imported the libraries: importing them takes longer than most tests.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 3
    try:
        signal.alarm(1200)
        with open(copy / "output.txt", "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.chdir(copy)
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]  # the copy imports its own
        sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != PROJECT]
        code = pytest.main(["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # skip the parent's clean-up


def main() -> int:
    numbers = [int(word) for word in sys.argv[1:]] or range(len(MUTATIONS))
    survivors = []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for library in LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(PROJECT, copy, ignore=LEFT_OUT)
        for number in tqdm(numbers, unit="fault"):
            if survives(MUTATIONS[number], copy):
                survivors.append(number)
                tqdm.write(f"not noticed: {number} {MUTATIONS[number]}")
    print(f"{len(numbers) - len(survivors)} of {len(numbers)} faults noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
