"""Every config key on resume: a changed value takes effect or is refused before anything is written."""

import shutil

import pytest
import safetensors.torch

from tests.small_runs import STEPS, arguments, contents, copy_of, fails, run_main, same_weights
from training.resume import AT_ONCE, IN_STEPS_TO_COME, RESUMABLE, WITH_RESCAN, values_of
from training.run_folder import RunFolder
from utils.config import LossWeights
from utils.config_files import DEFAULT_CONFIG, load_config

REACHED = 6  # steps; two of the second phase are done


@pytest.fixture(scope="module")
def others(folder, tmp_path_factory):
    """Return data other than those of the runs."""
    others = tmp_path_factory.mktemp("others")
    for name in ("images", "train", "val"):
        shutil.copytree(folder / name, others / name)
    for name in ("images", "train"):
        (others / name / "0.png").rename(others / name / "5.png")  # changes the positions in the list
    vgg = safetensors.torch.load_file(DEFAULT_CONFIG.parent / "weights" / "vgg16_conv1-3.safetensors")
    safetensors.torch.save_file({name: tensor * 1.1 for name, tensor in vgg.items()}, others / "vgg.safetensors")
    return others


# Another value for each key. OTHERS is a folder of other data.
OTHER_VALUES = {
    "run.seed": "1",
    "run.device": "auto",
    "data.train": "OTHERS/images",
    "data.val": "OTHERS/images",
    "data.val_pairs": "3",
    "data.image_size": "64",
    "data.crop_scale": "[0.5, 0.6]",
    "data.crop_unit": "area",
    "data.workers": "1",
    "data.max_bad": "0.5",
    "masks.train_dir": "OTHERS/train",
    "masks.val_dir": "OTHERS/val",
    "masks.train_count": "7",
    "masks.val_count": "7",
    "masks.size": "64",
    "masks.style": "strokes",
    "masks.hole_ratio": "[0.1, 0.2]",
    "masks.hole": "white",
    "masks.augment": "false",
    "masks.dilate": "[300, 400]",
    "masks.crop": "own_scale",
    "masks.outlines": "0.9",
    "model.depth": "3",
    "model.base_channels": "8",
    "model.base": "push_pull",
    "loss.vgg16": "OTHERS/vgg.safetensors",
    **{f"loss.weights.{term}": "2" for term in LossWeights.model_fields},
    "optim.name": "SGD",
    "optim.momentum": "0.5",
    "optim.weight_decay": "0.5",
    "train.batch_size": "4",
    "train.accumulate": "2",
    "train.amp": "bf16",
    "train.channels_last": "false",
    "train.checkpoint_activations": "true",
    "train.compile": "default",
    "train.fused": "false",
    "train.ema_decay": "0.5",
    "train.log_every": "2",
    "train.eval_every": "1",
    "train.save_every": "2",
    "train.export": "best",
    "train.keep_checkpoints": "2",
}
NEEDS_MORE = {"data.crop_unit": ["data.crop_scale=[0.3, 0.4]"], "loss.vgg16": ["loss.weights.perceptual=1"]}
# Keys that change how a run is computed or what it logs, not its weights.
SAME_WEIGHTS = {key for key, when in RESUMABLE.items() if when == AT_ONCE}


def refused():
    return [key for key in OTHER_VALUES if RESUMABLE[key] not in (AT_ONCE, IN_STEPS_TO_COME, WITH_RESCAN)]


def taken():
    return [
        pytest.param(key, marks=pytest.mark.slow) if key in ("train.compile", "data.workers") else key
        for key in OTHER_VALUES
        if RESUMABLE[key] in (AT_ONCE, IN_STEPS_TO_COME) and key != "train.batch_size"
    ]


def override(key, others):
    return f"{key}={OTHER_VALUES[key].replace('OTHERS', str(others))}"


def test_each_key_has_its_rule_and_its_case():
    keys = set(values_of(load_config()))
    assert set(RESUMABLE) == keys
    assert set(OTHER_VALUES) == keys - {"run.dir", "phases"}  # these have separate tests


@pytest.mark.parametrize("key", refused())
def test_a_value_that_must_stay_is_refused_before_anything_is_written(straight, others, tmp_path, capsys, key):
    run = copy_of(straight, tmp_path / "run", REACHED)
    before = contents(run.path)
    line = fails(capsys, "--resume", run.path, override(key, others))
    assert f"--resume: {key}: " in line
    assert "\n" not in line
    assert contents(run.path) == before


@pytest.mark.parametrize("key", taken())
def test_a_value_that_may_change_takes_effect(straight, others, tmp_path, key):
    more = NEEDS_MORE.get(key, [])
    run = copy_of(straight, tmp_path / "run", REACHED)
    run_main("--resume", run.path, override(key, others), *more)
    asked = load_config(overrides=[override(key, others), *more])
    assert values_of(load_config(run.config, resume=True))[key] == values_of(asked)[key]
    if key in SAME_WEIGHTS:
        return
    plain = straight
    if more:
        plain = copy_of(straight, tmp_path / "plain", REACHED)
        run_main("--resume", plain.path, *more)
    if key == "train.ema_decay":  # of the weights that are exported at the end
        assert run.weights.read_bytes() != plain.weights.read_bytes()
    else:
        assert not same_weights(run, plain)


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        ("train.log_every", lambda run: '"step": 7, "train' not in run.metrics.read_text()),
        ("train.eval_every", lambda run: (run.samples / "step_00000007.png").exists()),
        ("train.save_every", lambda run: not (run.checkpoints / "step_00000007.pt").exists()),
        ("train.keep_checkpoints", lambda run: len(list(run.checkpoints.glob("step_*.pt"))) == 2),
    ],
)
def test_what_is_written_takes_effect(straight, others, tmp_path, key, effect):
    assert not effect(straight)
    run = copy_of(straight, tmp_path / "run", REACHED)
    run_main("--resume", run.path, override(key, others))
    assert effect(run)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Muon"])
@pytest.mark.parametrize("change", ["optim.momentum=0.3", "optim.momentum=0", "optim.weight_decay=0.5"])
def test_options_of_other_optimizers_take_effect(folder, tmp_path, name, change):
    straight = RunFolder(tmp_path / "straight")
    run_main(*arguments(folder, straight.path, f"optim.name={name}", "phases.1.lr=1e-3"))
    run = copy_of(straight, tmp_path / "run", REACHED)
    run_main("--resume", run.path, change)
    assert not same_weights(run, straight)


def test_momentum_can_be_switched_on(folder, tmp_path):
    straight = RunFolder(tmp_path / "straight")
    run_main(*arguments(folder, straight.path, "optim.name=SGD", "optim.momentum=0"))
    run = copy_of(straight, tmp_path / "run", REACHED)
    run_main("--resume", run.path, "optim.momentum=0.9")
    assert not same_weights(run, straight)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("phases.0.steps=3", "phases.0.steps: 3 would change nothing: the steps of phases.0 are done"),
        ("phases.0.lr=1", "phases.0.lr: 1.0 would change nothing"),
        ("phases.0.batch_size=4", "phases.0.batch_size: 4 must stay 2"),
        (
            "phases.1.batch_size=4",
            "end phases.1 at phases.1.steps=2 and add a phase with another `batch_size` after it",
        ),
        ("train.batch_size=4", "train.batch_size: 4 must stay 2"),
        ("phases.1.steps=1", "phases.1.steps: 1 are fewer than the 2 that are done"),
        ("phases.1.settle_batches=2", "phases.1.settle_batches: 2 would change nothing"),
        ("phases.1.warmup=2", "phases.1.warmup: 2 would change nothing"),
        ("phases.1.end_lr=1e-6", "phases.1.end_lr: 1e-06 would change nothing: phases.1.schedule is constant"),
        ("phases=[{steps: 4, lr: 2e-4}]", "phases.1: is missing, but 2 of its steps are done"),
    ],
)
def test_steps_that_are_done_can_not_change(straight, tmp_path, capsys, change, rule):
    run = copy_of(straight, tmp_path / "run", REACHED)
    before = contents(run.path)
    assert rule in fails(capsys, "--resume", run.path, change)
    assert contents(run.path) == before


@pytest.mark.parametrize(
    "change",
    [
        "phases.1.steps=3",
        "phases.1.steps=5",
        "phases.1.lr=1e-3",
        "phases.1.warmup=4",
        "phases.1.schedule=cosine",
        "phases.1.image_size=64",
        "phases.1.crop_scale=[0.5, 0.6]",
        "phases.1.amp=bf16",
        "phases.1.loss_weights={tv: 5}",
        "phases.1.freeze_encoder_batch_norm=false",
    ],
)
def test_the_phase_that_runs_can_change(straight, tmp_path, change):
    run = copy_of(straight, tmp_path / "run", REACHED)
    run_main("--resume", run.path, change)
    assert not same_weights(run, straight)


def test_a_phase_to_come_can_have_another_batch_size(straight, tmp_path):
    run = copy_of(straight, tmp_path / "run", 3)
    run_main("--resume", run.path, "phases.1.batch_size=4", "phases.1.settle_batches=2")
    assert not same_weights(run, straight)


@pytest.mark.parametrize(
    ("change", "code"), [("optim.weight_decay=0.5", 1), ("phases.1.lr=1", 1), ("data.max_bad=1", 0)]
)
def test_a_run_that_is_done_has_nothing_left_to_change(straight, tmp_path, capsys, change, code):
    run = copy_of(straight, tmp_path / "run", STEPS)
    if code:
        line = fails(capsys, "--resume", run.path, change)
        assert "all 8 are done" in line or "would change nothing" in line
    else:
        run_main("--resume", run.path, change)
    run_main("--resume", run.path, "optim.weight_decay=0.5", "phases.1.steps=5")
    assert not same_weights(run, straight)


def test_a_config_that_was_edited_by_hand_is_held_to_the_same_rules(straight, tmp_path, capsys):
    run = copy_of(straight, tmp_path / "run", REACHED)
    text = run.config.read_text()
    run.config.write_text(text.replace("seed: 0", "seed: 1"))
    assert "run.seed" in fails(capsys, "--resume", run.path)
    run.config.write_text(text)
    run_main("--resume", run.path)
    assert same_weights(run, straight)
