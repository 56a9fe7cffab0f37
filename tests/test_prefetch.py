"""The order in which batches are fetched and used. test_cuda.py tests the overlap of copies."""

import pytest
import torch

from data.prefetch import copied_ahead, one_ahead


def test_each_item_comes_after_the_next_one_was_fetched():
    fetched = []

    def source():
        for i in range(4):
            fetched.append(i)
            yield i

    seen = [(item, len(fetched)) for item in one_ahead(source())]
    assert seen == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert list(one_ahead([])) == []


def test_an_error_comes_after_the_items_before_it():
    def source():
        yield 1
        yield 2
        raise OSError("disk")

    items = one_ahead(source())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="disk"):
        next(items)


def test_on_a_cpu_batches_are_converted_in_order_and_not_before_they_are_asked_for():
    converted = []

    def to_device(number):
        converted.append(number)
        return (torch.tensor(number),)

    batches = copied_ahead(range(3), to_device, torch.device("cpu"))
    assert next(batches)[0] == 0
    assert converted == [0]
    assert [int(tensor) for (tensor,) in batches] == [1, 2]
