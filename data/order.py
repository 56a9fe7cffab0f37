"""Randomness as a function: of (what for, number, seed), never of what was drawn before."""

from __future__ import annotations

import numpy as np

# What a random stream is for. A number once given stays, or old runs can't be repeated.
CROPS, SHUFFLE, VALIDATION_MASKS, EVALUATION_MASKS, SUBSTITUTES, HOLE_RADIUS = 1, 2, 3, 4, 5, 6
TRAIN_MASKS, VAL_MASKS = 101, 102
BENCHMARK_MASKS = 110  # and on to 121: one for each bin and border

# Four would do for many items; with four, the orders of ten images and fewer are not equally likely.
_ROUNDS = 8


def generator(purpose: int, number: int, seed: int) -> np.random.Generator:
    """The random generator of one sample: the same whoever asks, in whatever order."""
    return np.random.default_rng([purpose, number, seed])


def shuffled(position: int, count: int, key: tuple[int, ...]) -> int:
    """The item at `position` of a random order of range(count); another `key`, another order.

    A Feistel cipher on the smallest even number of bits that holds `count`, walked on while it leaves the
    range. So any place of the order of eight million items costs the same and no memory.
    """
    if not 0 <= position < count:
        raise ValueError(f"position must lie in 0 … {count - 1}, got {position}")
    bits = max(1, (count - 1).bit_length() + 1 >> 1)  # of each half
    low = (1 << bits) - 1
    round_keys = [int(k) for k in np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)]
    while True:
        left, right = position >> bits, position & low
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & low)
        position = left << bits | right
        if position < count:
            return position


def _mix(x: int) -> int:
    """A 64-bit hash (the finaliser of splitmix64)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31
