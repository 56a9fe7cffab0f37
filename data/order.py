"""Random numbers as a function of (purpose, number, seed), independent of earlier draws."""

from __future__ import annotations

import numpy as np

# Purposes of the random streams. Never change a number: old runs could not be reproduced.
CROPS, SHUFFLE, VALIDATION_MASKS, EVALUATION_MASKS, SUBSTITUTES, HOLE_RADIUS = 1, 2, 3, 4, 5, 6
TRAIN_MASKS, VAL_MASKS = 101, 102
BENCHMARK_MASKS = 110  # up to 121: one for each bin and border

# Four rounds suffice for many items, but would not make all orders of ten or fewer images equally likely.
_ROUNDS = 8


def generator(purpose: int, number: int, seed: int) -> np.random.Generator:
    """Return the random generator of one sample. It depends only on the arguments."""
    return np.random.default_rng([purpose, number, seed])


def shuffled(position: int, count: int, key: tuple[int, ...]) -> int:
    """Return the item at `position` of a random permutation of range(count). `key` selects the permutation.

    A Feistel cipher on the smallest even number of bits that holds `count`, repeated while the result is out of range.
    Each of eight million positions costs the same, and nothing is kept in memory.
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
    """64-bit hash (finaliser of splitmix64)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31
