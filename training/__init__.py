"""The parts of the training loop in main.py."""

from data.schedule import Schedule
from training.meter import Meter
from training.setup import (
    begin_phase,
    begin_run,
    end_run,
    load_newest,
    mean_losses,
    micro_batches,
    open_data,
    open_run,
    prepare_device,
    reports_failures,
    training_steps,
)
from training.state import TrainState, make_network
from training.stopping import StopRequest
from training.validation import validate
from utils.processes import all_reduce_max, no_sync

__all__ = [
    "Meter",
    "Schedule",
    "StopRequest",
    "TrainState",
    "all_reduce_max",
    "begin_phase",
    "begin_run",
    "end_run",
    "load_newest",
    "make_network",
    "mean_losses",
    "micro_batches",
    "no_sync",
    "open_data",
    "open_run",
    "prepare_device",
    "reports_failures",
    "training_steps",
    "validate",
]
