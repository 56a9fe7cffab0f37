"""LPIPS, FID and Inception score compared with their formulas, with small networks instead of the real ones."""

from __future__ import annotations

import importlib
import io
import multiprocessing
import sys
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.distributed
import torchmetrics
from torch import nn

from evaluation.learned import SetMetrics, frechet_distance, inception_score, load_inception, load_lpips
from evaluation.metrics import METRICS
from evaluation.summary import ALL, BINS, Estimate, Key, Row, groups
from utils.errors import UserError

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
ALEXNET = "alexnet-owt-7be5be79.pth"
LOADERS = pytest.mark.parametrize(("load", "name"), [(load_lpips, ALEXNET), (load_inception, INCEPTION)])


class Tiny(nn.Module):
    """Replaces Inception: 12 features, the means and standard deviations of two halves of the image."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 5)
        with torch.no_grad():
            self.fc.weight.copy_(torch.linspace(-0.1, 0.1, 60).reshape(12, 5).T)
            self.fc.bias.copy_(torch.arange(5))  # must not affect any score
        self.seen = []

    def forward(self, pixels):
        assert pixels.dtype == torch.uint8
        self.seen.append(pixels)
        halves = pixels.float().unflatten(3, (2, -1))  # (N,3,H,2,W/2)
        return torch.cat([halves.mean((2, 4)).flatten(1), halves.std((2, 4)).flatten(1)], 1)


def row(pair, method="a", image=None, bin_=BINS[0], border="any"):
    return Row(pair, image or f"{pair}.png", "mask.png", bin_, border, 0.05, method, {"psnr": 20.0})


def picture(seed):
    """Return (1,3,8,8) in [0,1] with 8-bit values and a random colour and contrast."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.uniform(60, 200, (3, 1, 1)) + rng.normal(0, rng.uniform(5, 50), (3, 8, 8)), 0, 255)
    return torch.from_numpy(pixels.astype(np.uint8))[None].float() / 255


def evaluated(count=40):
    """Yield (row, composite, truth) of two methods. A quarter of the pairs is border-free, half are in another bin."""
    for pair in range(count):
        for shift, method in enumerate("ab"):
            place = row(pair, method, bin_=BINS[pair % 2], border="any" if pair % 4 else "free")
            yield place, picture(1000 * (shift + 1) + pair), picture(pair)


def seen(cases):
    sets = SetMetrics(Tiny())
    for case in cases:
        sets.update(*case)
    return sets


# --- formulas --------------------------------------------------------------------------------------------------


def frechet_by_formula(a, b):
    """Return ‖μa − μb‖² + tr(A + B − 2 (A B)^½), with scipy's matrix root."""
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    one, other = np.cov(a.T), np.cov(b.T)
    return mean + np.trace(one + other - 2 * scipy.linalg.sqrtm(one @ other).real)


def frechet_by_singular_values(a, b):
    """The same for fewer images than features: tr (A B)^½ is the sum of the singular values of √A √B."""
    one, other = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    total = np.square(one).sum() + np.square(other).sum()
    return np.square(a.mean(0) - b.mean(0)).sum() + total - 2 * np.linalg.svd(one @ other.T, compute_uv=False).sum()


def score_by_formula(logits):
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return np.exp(np.mean([sum(q * np.log(q / m) for q, m in zip(each, p.mean(0))) for each in p]))


def features(count, size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(rng.normal(size=size), 1, (count, size)) @ rng.normal(size=(size, size))


def test_frechet_distance_by_hand():
    """In one dimension it is (difference of means)² + (difference of standard deviations)²."""
    a, b = torch.tensor([[-1.0], [1.0]] * 4), torch.tensor([[0.0], [6.0]] * 4)
    root = np.sqrt(8 / 7)  # the standard deviation of n images with divisor n − 1
    assert frechet_distance(a.double(), b.double()) == pytest.approx(3**2 + (3 * root - root) ** 2)


@pytest.mark.parametrize("count", [30, 100])
def test_frechet_distance_by_scipy(count):
    a, b = features(count, 8), features(count, 8, seed=1)
    expected = frechet_by_formula(a, b)
    assert frechet_by_singular_values(a, b) == pytest.approx(expected)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected)


@pytest.mark.parametrize("count", [2, 10, 24, 25, 40])
def test_frechet_distance_of_few_pictures(count):
    """Covers fewer and more samples than half of the 50 features."""
    a, b = features(count, 50), features(count, 50, seed=1)
    expected = frechet_by_singular_values(a, b)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected)


@pytest.mark.parametrize("count", [3, 20])
def test_frechet_distance_of_equal_sets_is_0(count):
    a = torch.from_numpy(features(count, 10))
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-5 * a.var(0).sum().item())


def test_inception_score_by_hand():
    """Confident predictions spread evenly give the number of classes; identical ones give 1."""
    assert inception_score(torch.eye(5).double().repeat(3, 1) * 50) == pytest.approx(5)
    assert inception_score(torch.tensor([[1.0, 2.0, 3.0]] * 4).double()) == pytest.approx(1)


def test_inception_score_by_formula_and_without_a_trace():
    logits = np.random.default_rng(0).normal(0, 2, (23, 5))
    before = torch.get_rng_state()
    score = inception_score(torch.from_numpy(logits))
    assert score == pytest.approx(score_by_formula(logits))
    assert inception_score(torch.from_numpy(logits)) == score
    assert torch.equal(torch.get_rng_state(), before)


# --- sets ------------------------------------------------------------------------------------------------------


def test_scores_of_each_group():
    cases = list(evaluated())
    found = seen(cases).compute()
    network = Tiny()

    def of(pictures):
        return np.concatenate([network((each * 255).round().byte()).numpy() for each in pictures]).astype(np.float64)

    expected = {}
    for bin_, border, members in groups([case[0] for case in cases]):
        keys = {(member.pair, member.method) for member in members}
        for method in "ab":
            chosen = [case for case in cases if (case[0].pair, method) in keys and case[0].method == method]
            composites, truths = of(case[1] for case in chosen), of(case[2] for case in chosen)
            logits = composites @ network.fc.weight.detach().numpy().astype(np.float64).T
            values = {
                "fid": frechet_by_singular_values(composites, truths),
                "inception_score": score_by_formula(logits),
            }
            for metric, value in values.items():
                estimate = Estimate(pytest.approx(value, rel=1e-5), None, None, len(chosen))
                expected[Key(method, metric, bin_, border)] = estimate
    assert len(expected) == 2 * 2 * 8  # one of the two bins has no border-free masks
    assert found == expected
    assert {key.metric for key in found} <= METRICS.keys()


def test_a_perfect_method_has_no_distance_and_another_one_has():
    sets = SetMetrics(Tiny())
    for pair in range(20):
        sets.update(row(pair, "perfect"), picture(pair), picture(pair))
        sets.update(row(pair, "other"), picture(100 + pair), picture(pair))
    found = sets.compute()
    assert found[Key("perfect", "fid", ALL, ALL)].mean == pytest.approx(0, abs=1e-3)
    assert found[Key("other", "fid", ALL, ALL)].mean > 10


def test_a_group_of_one_picture_is_left_out():
    sets = seen([(row(0), picture(0), picture(1)), (row(1, bin_=BINS[2]), picture(2), picture(3))])
    assert {(key.bin, key.border, value.count) for key, value in sets.compute().items()} == {
        (ALL, "any", 2),
        (ALL, ALL, 2),
    }
    assert SetMetrics(Tiny()).compute() == {}


def test_the_network_sees_each_picture_once_and_in_8_bits():
    sets = SetMetrics(Tiny())
    truth = picture(0)
    for pair in range(3):  # three masks of one image
        for method in "ab":
            sets.update(row(pair, method, image="one"), picture(1 + pair), truth)
    sets.update(row(3, image="one"), truth[..., :6], truth[..., :6])  # another size is another image
    assert len(sets.network.seen) == 1 + 6 + 2
    assert torch.equal(sets.network.seen[0], (truth * 255).round().byte())
    sets.update(row(4), torch.full((1, 3, 8, 8), 0.6 / 255), torch.full((1, 3, 8, 8), 1.2))
    assert [pixels.unique().tolist() for pixels in sets.network.seen[-2:]] == [[255], [1]]


def test_the_order_does_not_matter_and_the_last_of_a_row_counts():
    cases = list(evaluated(12))
    wrong = [(place, truth, truth) for place, _, truth in cases[:3]]
    assert seen([*wrong, *reversed(cases)]).compute() == seen(cases).compute()


def test_what_was_seen_is_saved_and_goes_on(tmp_path):
    cases = list(evaluated(12))
    seen(cases[:10]).save(tmp_path / "features.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["features.npz"]
    sets = SetMetrics(Tiny())
    sets.load(tmp_path / "features.npz")
    assert [place in sets for place, _, _ in cases] == [True] * 10 + [False] * 14
    for case in cases[10:]:
        sets.update(*case)
    assert len(sets.network.seen) == 14 + 7  # the ground truth of the first five pairs came from the file
    assert sets.compute() == seen(cases).compute()


def process(rank, folder, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    mine = [case for case in evaluated() if (case[0].pair >= 12) == rank]  # rank 1 gets more cases
    results.put((rank, seen(mine).compute()))
    torch.distributed.destroy_process_group()


def test_two_processes_score_what_both_have_seen(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=process, args=(rank, tmp_path, results), daemon=True) for rank in range(2)]
    for each in processes:
        each.start()
    try:
        found = dict(results.get(timeout=60) for _ in processes)
    finally:
        for each in processes:
            each.join(10)
            each.kill()
    assert found == {0: seen(evaluated()).compute(), 1: {}}


# --- networks --------------------------------------------------------------------------------------------------


def small_alexnet():
    """Return AlexNet's convolutions with torchvision's numbering and random weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


@pytest.fixture
def lpips(monkeypatch):
    monkeypatch.setattr("evaluation.learned._fetch", lambda metrics, url: None)
    monkeypatch.setattr("torchvision.models.alexnet", lambda weights: SimpleNamespace(features=small_alexnet()))
    return load_lpips("cpu")


def test_lpips_by_formula(lpips):
    """Eq. 1 of Zhang et al. with the trained channel weights of each layer, which torchmetrics ships."""
    a, b = torch.rand(2, 1, 3, 40, 31, generator=torch.Generator().manual_seed(1))
    shipped = f"{torchmetrics.__path__[0]}/functional/image/lpips_models/alex.pth"
    heads = list(torch.load(shipped, map_location="cpu", weights_only=True).values())
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x, y = (((image.permute(0, 2, 3, 1) - mean) / std).permute(0, 3, 1, 2) for image in (a, b))
    expected = 0.0
    for layer in small_alexnet():
        x, y = layer(x), layer(y)
        if isinstance(layer, nn.ReLU):
            distance = (x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)).square()
            expected += (distance * heads.pop(0)).sum(1).mean().item()
    assert not heads
    assert lpips(a, b) == pytest.approx(expected, rel=1e-4)
    assert lpips(a, a) == 0


def test_lpips_of_a_picture_too_small(lpips):
    assert lpips(torch.rand(1, 3, 31, 31), torch.rand(1, 3, 31, 31)) > 0
    with pytest.raises(UserError, match="at least 31 px; one is 31x30"):
        lpips(torch.rand(1, 3, 30, 31), torch.rand(1, 3, 30, 31))


def test_the_inception_network_and_its_last_layer(monkeypatch):
    """With random weights: there are 2048 features, and the logits without bias are computed from them."""
    module = "torch_fidelity.feature_extractor_inceptionv3"
    monkeypatch.setattr("evaluation.learned._fetch", lambda metrics, url: None)
    monkeypatch.setattr(f"{module}.load_state_dict_from_url", lambda *_, **__: {})
    monkeypatch.setattr(f"{module}.FeatureExtractorInceptionV3.load_state_dict", lambda *_: None)
    network = load_inception("cpu")
    pixels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    features = network(pixels)
    assert features.shape == (1, 2048)
    network.features_list = ["logits_unbiased"]
    logits = network(pixels)
    assert logits.abs().max() > 0
    assert torch.allclose(features @ network.get_parameter("fc.weight").T, logits, atol=1e-5 * logits.abs().max())


# --- missing weights and packages ------------------------------------------------------------------------------


@LOADERS
def test_no_network(load, name, tmp_path, monkeypatch, capfd):
    def offline(request):
        assert request.full_url.endswith(f"/{name}")
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(UserError) as caught:
        load("cpu")
    message = str(caught.value)
    target = tmp_path / "hub" / "checkpoints" / name
    assert f"{name} could not be downloaded (<urlopen error Name or service not known>); get https://" in message
    assert f"/{name} and put it at {target}, or leave" in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
    assert list(target.parent.iterdir()) == []


class Answer(io.BytesIO):
    """A server's response with less than the complete file."""

    def info(self):
        return SimpleNamespace(get_all=lambda _: ["1000"])


@LOADERS
def test_a_download_cut_off_leaves_nothing(load, name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", lambda request: Answer(b"half of it"))
    with pytest.raises(UserError, match=f"{name} could not be downloaded .invalid hash value"):
        load("cpu")
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


@LOADERS
def test_a_damaged_file_is_named_and_stays(load, name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    target = tmp_path / "hub" / "checkpoints" / name
    target.parent.mkdir(parents=True)
    target.write_bytes(b"half of it")
    with pytest.raises(UserError, match=f"damaged or other weights for .*: {target}; remove it"):
        load("cpu")
    assert target.read_bytes() == b"half of it"


@pytest.mark.parametrize(
    "package", ["torchmetrics.image.lpip", "torchmetrics.image.fid", "torch_fidelity.feature_extractor_inceptionv3"]
)
def test_packages_that_are_not_installed(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # makes its import fail
    monkeypatch.delitem(sys.modules, "evaluation.learned")
    with pytest.raises(UserError, match=r"^no packages for .*: .*`pip install -r requirements-metrics.txt`$"):
        importlib.import_module("evaluation.learned")
