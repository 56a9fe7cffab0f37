"""Phases: their steps, samples and learning rates."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schedule import Schedule
from utils.config_files import DEFAULT_CONFIG, load_config

CONFIGS = [DEFAULT_CONFIG, *sorted((DEFAULT_CONFIG.parent / "configs").glob("*.yml"))]


def schedule_of(*phases, batch_size=6):
    return Schedule(load_config(overrides=[f"train.batch_size={batch_size}", f"phases=[{', '.join(phases)}]"]))


THREE = schedule_of(
    "{steps: 4, lr: 1}", "{steps: 0, lr: 9}", "{steps: 3, lr: 2, batch_size: 10}", "{steps: 5, lr: 3, image_size: 128}"
)


def test_steps_and_samples_by_hand():
    assert [(p.number, p.first_step, p.last_step, p.first_sample) for p in THREE.phases] == [
        (0, 0, 4, 0),
        (2, 4, 7, 24),  # skips the phase without steps
        (3, 7, 12, 54),
    ]
    assert THREE.total_steps == 12
    assert [THREE.samples_before(step) for step in range(14)] == [0, 6, 12, 18, 24, 34, 44, 54, 60, 66, 72, 78, 84, 90]
    assert [THREE.phase_of(step).number for step in range(14)] == [0] * 4 + [2] * 3 + [3] * 7
    assert [phase.image_size for phase in THREE.phases] == [256, 256, 128]
    assert [phase.batch_size for phase in THREE.phases] == [6, 10, 6]


def test_a_phase_has_its_own_values_and_otherwise_those_of_the_sections():
    first, second = schedule_of(
        "{steps: 1, lr: 1}",
        "{steps: 1, lr: 1, amp: bf16, crop_scale: [2, 3], loss_weights: {style: 0}, image_size: 512, settle_batches: 4,"
        " freeze_encoder_batch_norm: true}",
    ).phases
    assert (first.amp, first.crop_scale, first.loss_weights["style"]) == ("auto", (1.0, 1.4), 120)
    assert (second.amp, second.crop_scale, second.loss_weights["style"]) == ("bf16", (2, 3), 0)
    assert {**second.loss_weights, "style": 120} == first.loss_weights
    assert (first.freeze_encoder_batch_norm, first.settle_batches) == (False, 0)
    assert (second.freeze_encoder_batch_norm, second.settle_batches, second.image_size) == (True, 4, 512)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9)), min_size=1, max_size=4),
    sample=st.integers(0, 2000),
)
def test_the_step_of_a_sample(sizes, sample):
    schedule = schedule_of(*(f"{{steps: {steps}, lr: 1, batch_size: {size}}}" for steps, size in sizes))
    step = schedule.step_of(sample)
    assert schedule.samples_before(step) <= sample
    assert sample < schedule.samples_before(step) + schedule.phase_of(step).batch_size
    for step in range(schedule.total_steps + 3):
        assert schedule.step_of(schedule.samples_before(step)) == step


# --- learning rates ------------------------------------------------------------------------------------------------


def rates(phase):
    (phase,) = schedule_of(phase).phases
    return [phase.lr_at(step) for step in range(phase.first_step, phase.last_step)]


def test_a_constant_rate():
    assert rates("{steps: 3, lr: 0.5}") == [0.5] * 3


def test_a_warm_up_by_hand():
    assert rates("{steps: 6, lr: 0.8, warmup: 4}") == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_a_cosine_by_hand():
    """It falls from lr towards end_lr, which it would reach one step after the last."""
    cosine = rates("{steps: 4, lr: 1, schedule: cosine, end_lr: 0.2}")
    half = math.sqrt(0.5)
    assert cosine == pytest.approx([1, 0.2 + 0.4 * (1 + half), 0.6, 0.2 + 0.4 * (1 - half)])
    (phase,) = schedule_of("{steps: 4, lr: 1, schedule: cosine, end_lr: 0.2}").phases
    assert phase.lr_at(4) == pytest.approx(0.2)


def test_a_cosine_behind_a_warm_up():
    assert rates("{steps: 6, lr: 1, warmup: 2, schedule: cosine}") == pytest.approx(
        [0.5, 1, 1, 0.5 * (1 + math.sqrt(0.5)), 0.5, 0.5 * (1 - math.sqrt(0.5))]
    )
    assert rates("{steps: 2, lr: 1, warmup: 5, schedule: cosine}") == pytest.approx([0.2, 0.4])


def test_each_phase_counts_from_its_own_first_step():
    schedule = schedule_of("{steps: 5, lr: 1}", "{steps: 4, lr: 2, warmup: 2, schedule: cosine, end_lr: 1}")
    found = [schedule.phase_of(step).lr_at(step) for step in range(9)]
    assert found == pytest.approx([1] * 5 + [1, 2, 2, 1.5])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_phases_of_the_projects_configs_follow_on_one_another(path):
    config = load_config(path)
    schedule = Schedule(config)
    assert schedule.total_steps == sum(phase.steps for phase in config.phases)
    for one, other in zip(schedule.phases, schedule.phases[1:]):
        assert one.last_step == other.first_step
        assert other.first_sample - one.first_sample == one.batch_size * (one.last_step - one.first_step)
