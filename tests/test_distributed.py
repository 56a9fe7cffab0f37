"""Several processes: they compute what one process computes, and they stop together."""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed, nn

import main as training
from data.loader import StepBatches, validation_batches
from data.samples import validation_pairs
from data.schedule import Schedule
from model import PConvUNet, settle_encoder_batch_norm, synchronise_batch_norm
from tests import small_runs
from tests.small_runs import WITH_VGG, records, run_main, weights
from training.run_folder import RunFolder
from training.setup import check_batches
from training.stopping import StopRequest
from utils.checkpoint import load_checkpoint
from utils.config_files import load_config
from utils.errors import UserError
from utils.processes import (
    _cleared,
    all_reduce_max,
    all_reduce_mean,
    gather_on_rank_0,
    processes,
    rank_and_world_size,
    wait_for_all,
)

PROJECT = Path(__file__).resolve().parent.parent
STEPS = 20
CPU = torch.device("cpu")

# main.py as a script, with faults injected, optionally in float64.
SCRIPT = """
import os, signal, sys
sys.path.insert(0, {project!r})
import torch
import main
{change}
sys.exit(main.main(sys.argv[1:]))
"""
IN_FLOAT64 = """
import data.loader
as_floats = data.loader.as_floats
data.loader.as_floats = lambda *args: tuple(tensor.double() for tensor in as_floats(*args))
torch.set_default_dtype(torch.float64)
"""
# Run a statement after one step on one rank.
AT_STEP = """
import training.state
take_step = training.state.TrainState.take_step
def at_step(self, losses):
    take_step(self, losses)
    if os.environ.get("RANK", "0") == "{rank}" and self.step == {step}:
        {act}
training.state.TrainState.take_step = at_step
"""
# Print which process writes each checkpoint.
SAVED_BY = """
import training.run_folder
save = training.run_folder.RunFolder.save_checkpoint
def told(self, *args):
    print("saved by process", os.environ.get("RANK", "0"))
    save(self, *args)
training.run_folder.RunFolder.save_checkpoint = told
"""
NAN_IN_ONE = """
import loss
forward = loss.InpaintingLoss.forward
def broken(self, output, image, mask):
    total, terms = forward(self, output, image, mask)
    return (total * float("nan") if os.environ["RANK"] == "1" else total), terms
loss.InpaintingLoss.forward = broken
"""


# --- one forked process per rank, without torchrun -------------------------------------------------------------


def run_rank(work, rank, count, meeting, results):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count))
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=count)
    results.put((rank, work(rank, count)))
    wait_for_all()
    if not torch.__version__.startswith("2.6."):  # as in utils/processes.py
        distributed.destroy_process_group()


def on_ranks(work, count, folder):
    """Return the results of work(rank, count) by rank, each computed in a process of one process group."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = [(work, rank, count, folder / "meeting", results) for rank in range(count)]
    ranks = [context.Process(target=run_rank, args=args, daemon=True) for args in arguments]
    for each in ranks:
        each.start()
    try:
        found = dict(results.get(timeout=60) for _ in ranks)
    finally:
        for each in ranks:
            each.join(10)
            each.kill()
    return [found[rank] for rank in range(count)]


def plain(tensors):
    """Return lists: tensors would be sent between processes through shared files."""
    return [tensor.tolist() for tensor in tensors]


def test_numbers_and_objects_of_all_processes(tmp_path):
    def work(rank, count):
        mean = all_reduce_mean(torch.tensor([1.0 + rank, 4.0]))
        return (
            rank_and_world_size(),
            mean.tolist(),
            all_reduce_max([3, 15, 2][rank]),
            gather_on_rank_0([rank, rank * 10]),
        )

    assert on_ranks(work, 3, tmp_path) == [
        ((0, 3), [2.0, 4.0], 15, [0, 0, 1, 10, 2, 20]),
        ((1, 3), [2.0, 4.0], 15, []),
        ((2, 3), [2.0, 4.0], 15, []),
    ]


def test_one_process_alone_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes(None) as found:
        assert found == rank_and_world_size() == (0, 1)
    assert all_reduce_max(7) == 7
    assert gather_on_rank_0([1]) == [1]
    assert all_reduce_mean(torch.tensor(2.0)) == 2


def test_processes_that_start_again_see_nothing_of_those_before():
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def meet(number, delay):
        time.sleep(delay)
        client = distributed.TCPStore("127.0.0.1", server.port, timeout=timedelta(seconds=20))
        store = _cleared(client, number, 3)
        return store.add("sum", 10**number)

    with ThreadPoolExecutor(3) as pool:
        for first_comes_last in (0.0, 0.0, 0.3, 1.5):  # seconds; then the others read a stale name first
            # All three met in one store, to which nothing had been added before.
            assert max(pool.map(meet, range(3), (first_comes_last, 0.0, 0.1))) == 111


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("tracked", [True, False])
def test_batch_norm_of_two_processes_is_that_of_the_whole_batch(tmp_path, momentum, tracked):
    torch.manual_seed(0)
    # Far from 0, in float64: computing the variance as a difference of squares would lose half the digits.
    x = 1e5 + torch.randn(3, 4, 5, 6, 2, dtype=torch.float64)  # three batches (4,5,6,2)
    weight = torch.randn(x.shape, dtype=torch.float64)  # of each output in the loss

    def passes(bn, x, weight, scale):
        """Train for three steps, then evaluate. Returns outputs, last gradients and state."""
        for batch, w in zip(x, weight):
            batch = batch.clone().requires_grad_()
            bn.zero_grad()
            y = bn(batch)
            ((y * w).sum() * scale).backward()
        bn.eval()
        return [y, batch.grad, bn.weight.grad, bn.bias.grad, *bn.state_dict().values(), bn(x[0])]

    def new():
        torch.manual_seed(1)
        bn = nn.BatchNorm2d(5, momentum=momentum).double()
        nn.init.normal_(bn.weight)
        nn.init.normal_(bn.bias)
        bn.track_running_stats = tracked
        return bn

    def work(rank, count):
        bn = nn.Sequential(new())
        bn = synchronise_batch_norm(bn, CPU)
        share = slice(2 * rank, 2 * rank + 2)
        # The loss is the mean over the ranks, and each rank has the loss of half the batch.
        return plain(passes(bn[0], x[:, share], weight[:, share], 2.0))

    first, second = on_ranks(work, 2, tmp_path)
    y, x_grad, weight_grad, bias_grad, *state, after = plain(passes(new(), x, weight, 1.0))
    close = {"rel": 1e-9, "abs": 1e-9}
    flat = lambda nested: np.asarray(nested).ravel().tolist()  # noqa: E731
    assert flat(first[0] + second[0]) == pytest.approx(flat(y), **close)
    assert flat(first[1] + second[1]) == pytest.approx(flat(2 * np.array(x_grad)), **close)
    for index, whole in ((2, weight_grad), (3, bias_grad)):
        assert flat(np.add(first[index], second[index]) / 2) == pytest.approx(flat(whole), **close)
    for ours in (first, second):
        for found, wanted in zip(ours[4:-1], state, strict=True):
            assert flat(found) == pytest.approx(flat(wanted), **close)
    assert flat(first[-1] + second[-1]) == pytest.approx(flat(after), **close)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_batch_norm_of_half_types_counts_in_float32(tmp_path, dtype):
    """As in torch's own batch norm, values are half precision; weights and statistics are not."""
    torch.manual_seed(0)
    x = (5 + torch.randn(4, 3, 64, 64)).to(dtype)  # 8192 values per channel and rank; bfloat16 counts only to 256
    weight = torch.randn(x.shape)

    def passes(bn, x, weight, scale):
        x = x.clone().requires_grad_()
        y = bn(x)
        ((y.float() * weight).sum() * scale).backward()
        assert y.dtype == x.grad.dtype == dtype
        assert bn.weight.grad.dtype == torch.float32
        return [bn.running_mean, bn.running_var, y.detach().float(), bn.weight.grad, bn.bias.grad, x.grad.float()]

    def work(rank, count):
        net = nn.Sequential(nn.BatchNorm2d(3))
        net = synchronise_batch_norm(net, CPU)
        share = slice(2 * rank, 2 * rank + 2)
        return plain(passes(net[0], x[share], weight[share], 2.0))  # the loss is the mean over the ranks

    found = [torch.tensor(parts) for parts in zip(*on_ranks(work, 2, tmp_path))]
    wanted = passes(nn.BatchNorm2d(3), x, weight, 1.0)
    for ours, theirs in zip(found[:2], wanted[:2]):  # statistics
        torch.testing.assert_close(ours, torch.stack([theirs, theirs]), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(found[3:5], wanted[3:5]):  # float32 gradients
        torch.testing.assert_close(ours.mean(0), theirs, rtol=1e-4, atol=0.01)
    for ours, theirs in ((found[2], wanted[2]), (found[5] / 2, wanted[5])):  # half-precision tensors
        step = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours.flatten(0, 1), theirs, rtol=step, atol=step)


def test_settled_statistics_are_those_of_one_process(tmp_path):
    torch.manual_seed(0)
    images, masks = torch.rand(3, 4, 3, 8, 8), (torch.rand(3, 4, 1, 8, 8) > 0.3).float()

    def settled(share):
        torch.manual_seed(0)
        net = PConvUNet(depth=2, base_channels=2)
        if distributed.is_initialized():
            net = synchronise_batch_norm(net, CPU)
        settle_encoder_batch_norm(net, zip(images[:, share], masks[:, share]))
        net.freeze_encoder_batch_norm()
        return {key: tensor.tolist() for key, tensor in net.state_dict().items() if ".bn." in key}

    whole = settled(slice(None))
    for ours in on_ranks(lambda rank, count: settled(slice(2 * rank, 2 * rank + 2)), 2, tmp_path):
        assert ours.keys() == whole.keys()
        for key in whole:
            assert ours[key] == pytest.approx(whole[key], rel=1e-5), key


# --- distribution of samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_hold_the_same_slots_whatever_the_number_of_processes(parts, count):
    size = 24
    (phase,) = Schedule(load_config(overrides=[f"train.batch_size={size}", "phases=[{steps: 9, lr: 1}]"])).phases
    shares = [list(StepBatches(phase, 5, 7, parts, rank, count)) for rank in range(count)]
    for step in (0, 1):
        of_ranks = np.array([share[step] for share in shares]).reshape(count, parts, -1)
        for part in range(parts):
            slots = np.arange(size // parts) + part * (size // parts) + (5 + step) * size
            assert sorted(of_ranks[:, part].ravel()) == slots.tolist()


def test_shares_by_hand():
    (phase,) = Schedule(load_config(overrides=["train.batch_size=8", "phases=[{steps: 9, lr: 1}]"])).phases
    assert list(StepBatches(phase, 1, 2, micro_batches=2, rank=0, world_size=2)) == [[8, 9, 12, 13]]
    assert list(StepBatches(phase, 1, 2, micro_batches=2, rank=1, world_size=2)) == [[10, 11, 14, 15]]


def test_a_batch_that_can_not_be_shared_is_refused():
    config = load_config(overrides=["train.batch_size=12", "train.accumulate=2"])
    for count in (1, 2, 3, 6):
        check_batches(config, Schedule(config), count)
    with pytest.raises(UserError, match="12 images .* 4 processes .*multiple of 8"):
        check_batches(config, Schedule(config), 4)
    config = load_config(overrides=["train.batch_size=12", "phases.1.batch_size=9"])
    check_batches(config, Schedule(config), 3)
    with pytest.raises(UserError, match="9 images .* 4 processes"):
        check_batches(config, Schedule(config), 4)


# --- complete runs -------------------------------------------------------------------------------------------------


def arguments(folder, run, *more):
    """Return arguments of a run of STEPS steps with batches for four ranks and all loss terms in fine-tuning."""
    steps = ("phases.0.steps=14", f"phases.1.steps={STEPS - 14}", "phases.1.settle_batches=3")
    loss = "phases.1.loss_weights={perceptual: 0.05, style: 120}"
    every = ("train.eval_every=10", "train.save_every=10")
    sizes = ("data.val_pairs=9", "model.depth=3", "train.batch_size=8")
    return small_runs.arguments(folder, run, *steps, loss, *every, *sizes, *more)


def launch(count, args, change="", script=None, restarts=0):
    """Start main.py with the given code change, under torchrun if count > 1."""
    script = script or Path(args[0].partition("=")[2] + ".py")
    script.write_text(SCRIPT.format(project=str(PROJECT), change=change))
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={count}",
        f"--max-restarts={restarts}",
    ]
    command = [sys.executable, *(torchrun if count > 1 else []), str(script), *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=PROJECT, stdout=pipe, stderr=pipe, text=True, env=environment)


def finish(process, timeout=120):
    """Return exit code, stdout and stderr of a process. It is killed after the timeout."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    return process.returncode, out, err


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill(process):
    """Kill a process and its children (torchrun's ranks)."""
    for pid in [*children(process.pid), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def train(count, args, change="", restarts=0):
    code, out, err = finish(launch(count, args, change, restarts=restarts))
    assert code == 0, err
    return out, err


def difference_of_weights(run, other, kind="model"):
    """Return the largest difference between tensors of the same name, relative to the largest value in the tensor."""
    ours, theirs = (load_checkpoint(each.last)[kind] for each in (run, other))
    assert ours.keys() == theirs.keys()
    largest = {key: value.abs().max().clamp(min=1e-30) for key, value in theirs.items()}  # hole_radius may be 0
    return max(float((ours[key] - theirs[key]).abs().max() / largest[key]) for key in ours)


def difference_of_records(run, other):
    """Return the largest relative difference between numbers in metrics.jsonl, without the speed."""
    differences = []
    for ours, theirs in zip(records(run), records(other), strict=True):
        assert ours.keys() == theirs.keys()
        differences += [abs(ours[name] - theirs[name]) / (abs(theirs[name]) or 1) for name in ours]
    return max(differences)


def assert_same_pictures(run, other):
    """Compares up to rounding to 8 bits."""
    for ours, theirs in zip(sorted(run.samples.iterdir()), sorted(other.samples.iterdir()), strict=True):
        difference = np.asarray(Image.open(ours)).astype(int) - np.asarray(Image.open(theirs))
        assert abs(difference).max() <= 1


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """Return an uninterrupted run of one process in float32."""
    run = RunFolder(tmp_path_factory.mktemp("alone") / "run")
    run_main(*arguments(folder, run.path))
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "rel", "counts", "more"),
    [
        # Adam is invariant to the scale of gradients; SGD is not.
        (IN_FLOAT64, 1e-8, (1, 2, 4), ["train.accumulate=2", "optim.name=SGD", "phases.0.lr=1e-5"]),
        ("", 1e-3, (1, 4), []),
    ],
    ids=["float64, in two parts", "float32"],
)
def test_two_and_four_processes_compute_what_one_does(folder, tmp_path, change, rel, counts, more):
    more = ("train.ema_decay=0.75", *more)
    runs = [RunFolder(tmp_path / str(count)) for count in counts]
    for count, run in zip(counts, runs):
        out, _ = train(count, arguments(folder, run.path, *more), SAVED_BY + change)
        assert set(re.findall("saved by process (.)", out)) == {"0"}
        assert out.count("step 0 to 20") == out.count("held-out l1_percent") / 2 == out.count("done: ") == 1
        assert len(list(run.path.glob("events.out.tfevents.*"))) == 1
    for run in runs[1:]:
        of_weights, of_records = difference_of_weights(run, runs[0]), difference_of_records(run, runs[0])
        print(f"{run.path.name} processes: weights differ by {of_weights:.1e}, records by {of_records:.1e}")
        assert of_weights <= rel
        assert of_records <= 1e-4
        assert difference_of_weights(run, runs[0], "ema") <= rel
        assert_same_pictures(run, runs[0])
        assert sorted(path.name for path in run.checkpoints.iterdir()) == sorted(
            path.name for path in runs[0].checkpoints.iterdir()
        )


PHASES = (
    "phases=["
    "{steps: 6, lr: 1e-4, warmup: 3, image_size: 16, batch_size: 12, loss_weights: {tv: 0}}, "
    "{steps: 6, lr: 1e-4, schedule: cosine, crop_scale: [0.5, 0.8]}, "
    "{steps: 6, lr: 5e-5, batch_size: 4, freeze_encoder_batch_norm: true, settle_batches: 2, "
    "loss_weights: {perceptual: 0.05}}]"
)


@pytest.mark.slow
def test_phases_by_two_processes_are_those_of_one_resumed_at_their_boundaries(folder, tmp_path):
    more = (PHASES, "model.depth=2", "train.eval_every=4")
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    run_main(*arguments(folder, one.path, *more))
    # Two processes stop where the second phase begins, one where the third begins.
    for count, last in ((2, 6), (1, 12), (2, 18)):
        stop = AT_STEP.format(rank=count - 1, step=last, act="os.kill(os.getpid(), signal.SIGTERM)")
        words = arguments(folder, two.path, *more) if last == 6 else ["--resume", str(two.path)]
        code, out, err = finish(launch(count, words, stop if last < 18 else "", tmp_path / f"{last}.py"))
        assert f"stopped at step {last} and saved" in out or (code, last) == (0, 18), err
    assert difference_of_weights(two, one) <= 1e-3
    assert difference_of_records(two, one) <= 1e-4


@pytest.mark.slow
def test_two_processes_compute_what_one_does_in_bfloat16(folder, tmp_path):
    runs = [RunFolder(tmp_path / str(count)) for count in (1, 2)]
    # SGD, because Adam takes full steps for gradients whose sign is only rounding error.
    few = ("phases.0.steps=6", "phases.1.steps=3", "optim.name=SGD", "phases.0.lr=1e-5")
    for count, run in zip((1, 2), runs):
        train(count, arguments(folder, run.path, *few, "train.amp=bf16"))
    of_weights, of_records = difference_of_weights(runs[1], runs[0]), difference_of_records(runs[1], runs[0])
    print(f"weights differ by {of_weights:.1e}, records by {of_records:.1e}")
    assert of_weights <= 0.1  # biases, which are sums that cancel
    assert of_records <= 0.01


def test_accumulated_parts_give_the_step_of_the_whole_batch(folder, tmp_path, monkeypatch):
    # In evaluation mode batch norm is per sample. SGD, because Adam is invariant to the scale of gradients.
    monkeypatch.setattr(PConvUNet, "train", lambda net, mode=True: nn.Module.train(net, False))
    runs = [RunFolder(tmp_path / str(parts)) for parts in (1, 4)]
    for parts, run in zip((1, 4), runs):
        few = (*WITH_VGG, "phases.0.steps=2", "phases.1.steps=0", "optim.name=SGD", "phases.0.lr=1e-5")
        assert training.main(arguments(folder, run.path, *few, f"train.accumulate={parts}")) == 0
    assert difference_of_weights(runs[1], runs[0]) <= 2e-4  # biases, which are sums that cancel; weights reach 4e-6
    assert difference_of_records(runs[1], runs[0]) <= 1e-5
    start = torch.load(runs[0].checkpoints / "step_00000000.pt", weights_only=True)["model"]
    trained = {key: tensor for key, tensor in weights(runs[0]).items() if key != "hole_radius"}
    moved = [(tensor - start[key]).abs().max() / tensor.abs().max() for key, tensor in trained.items()]
    assert max(moved) > 1e-3  # otherwise the test could not fail


def test_the_parts_of_a_batch_are_told_in_the_config():
    with pytest.raises(UserError, match=r"train.batch_size: 9 must be a multiple of train.accumulate = 2"):
        load_config(overrides=["train.batch_size=9", "train.accumulate=2"])
    with pytest.raises(UserError, match=r"train.batch_size: 2 leaves batch norm one value .* at least 4"):
        load_config(overrides=["train.batch_size=2", "train.accumulate=2", "data.image_size=128"])


def test_validation_is_split_evenly_and_wholly(folder, tmp_path):
    config = load_config(overrides=arguments(folder, tmp_path))
    pairs = validation_pairs(config)
    shares = [validation_batches(pairs, config, process, 4) for process in range(4)]
    assert [list(share.sampler) for share in shares] == [[0, 4, 8], [1, 5], [2, 6], [3, 7]]
    images = [image for image, _ in validation_batches(pairs, config, 1, 4)]
    assert torch.equal(torch.cat(images), torch.stack([pairs[1].image, pairs[5].image]) / 255)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(folder, alone, tmp_path):
    run = RunFolder(tmp_path / "run")
    # Two processes until step 10, four until step 15, in the middle of fine-tuning, then one.
    for count, last in ((2, 10), (4, 15), (1, STEPS)):
        stop = AT_STEP.format(rank=min(1, count - 1), step=last, act="os.kill(os.getpid(), signal.SIGTERM)")
        more = arguments(folder, run.path) if count == 2 else ["--resume", str(run.path)]
        code, out, err = finish(launch(count, more, stop if last < STEPS else "", tmp_path / f"{count}.py"))
        assert f"stopped at step {last} and saved" in out or last == STEPS, err
        assert out.count("python main.py --resume") == (last < STEPS)
        assert (code == 0) == (last == STEPS)
    assert difference_of_weights(run, alone) <= 1e-3
    assert difference_of_records(run, alone) <= 1e-4


# --- what ends one process ends all ------------------------------------------------------------------------------


@contextlib.contextmanager
def begun(folder, run, count, *more):
    """Start a long run with `count` ranks, wait for its first record, yield torchrun's process and the ranks' pids."""
    long = ("phases.0.steps=100000", "train.eval_every=100000", "train.save_every=1", "train.keep_checkpoints=3")
    torchrun = launch(count, arguments(folder, run.path, *long, *more))
    try:
        end = time.monotonic() + 90
        while not run.metrics.exists():
            assert torchrun.poll() is None, torchrun.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.05)
        yield torchrun, children(torchrun.pid)
    finally:
        if torchrun.poll() is None:
            kill(torchrun)


def test_torchrun_passes_on_a_signal_that_was_there_before(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    with StopRequest() as stop:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), signum)
        assert stop.signum == signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "whom"),
    [(signal.SIGTERM, "one"), (signal.SIGTERM, "all"), (signal.SIGTERM, "torchrun"), (signal.SIGINT, "torchrun")],
)
def test_a_signal_to_any_process_stops_all_at_the_same_step(folder, tmp_path, signum, whom):
    run = RunFolder(tmp_path / "run")
    with begun(folder, run, 2, "data.workers=1", "train.save_every=100000") as (torchrun, ranks):
        assert len(ranks) == 2
        for pid in {"one": ranks[1:], "all": [*ranks, torchrun.pid], "torchrun": [torchrun.pid]}[whom]:
            os.kill(pid, signum)
        began = time.monotonic()
        code, out, err = finish(torchrun)
    assert time.monotonic() - began < 90  # a collective alone would wait for an hour
    assert code != 0
    step = torch.load(run.last, weights_only=True)["step"]
    assert re.findall(r"stopped at step (\d+) and saved", out) == [str(step)]
    assert step > 0
    assert [line["step"] for line in records(run)] == list(range(1, step + 1))
    assert "gloo" not in err


@pytest.mark.slow
def test_a_killed_process_brings_the_run_down_with_one_message(folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    with begun(folder, run, 4) as (torchrun, ranks):
        os.kill(ranks[2], signal.SIGKILL)
        began = time.monotonic()
        code, out, err = finish(torchrun)
    assert time.monotonic() - began < 90  # a collective alone would wait for an hour
    assert code != 0
    assert err.count("error: ") == err.count("error: another process of this run has ended") == 1, err
    assert "exitcode  : -9" in err  # torchrun's own message
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert "stopped at step" not in out
    assert torch.load(run.last, weights_only=True)["step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (NAN_IN_ONE, [], r"step 1: the loss is not finite \(total = nan\)"),
        ("", ["model.depth=9"], "data.image_size: 32 must be a multiple of 512"),
    ],
    ids=["nan in one", "config"],
)
def test_an_error_is_told_once(folder, tmp_path, change, more, message):
    code, _, err = finish(launch(2, arguments(folder, tmp_path / "run", *more), change))
    assert code != 0
    lines = re.findall("error: .*", err)  # may follow the progress bar of another process on the line
    assert len(lines) == 1, err
    assert re.search(message, lines[0])
    assert "gloo" not in err


@pytest.mark.slow
def test_torchrun_restarts_a_run_from_its_last_checkpoint(folder, tmp_path):
    runs = [RunFolder(tmp_path / name) for name in ("undisturbed", "disturbed")]
    more = ("data.workers=1", "train.save_every=3")
    train(2, arguments(folder, runs[0].path, *more))
    once = AT_STEP.format(
        rank=1, step=17, act="os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and os.kill(os.getpid(), 9)"
    )
    out, _ = train(2, arguments(folder, runs[1].path, *more), once, restarts=1)
    assert "step 0 to 20" in out
    assert "step 15 to 20" in out
    assert difference_of_weights(runs[1], runs[0]) <= 0  # bit for bit
    assert difference_of_records(runs[1], runs[0]) <= 0


@pytest.mark.parametrize("count", ["0", "1"])
def test_a_start_anew_goes_on_only_when_torchrun_restarts(folder, tmp_path, monkeypatch, capsys, count):
    run = RunFolder(tmp_path / "run")
    few = ("phases.0.steps=1", "phases.1.steps=0")
    assert training.main(arguments(folder, run.path, *few)) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    assert training.main(arguments(folder, run.path, *few)) == 1 - int(count)
    assert training.main(arguments(folder, run.path, *few, "run.seed=1")) == 1  # the folder belongs to another run
    assert "is not empty" in capsys.readouterr().err
