"""What users see of the shipped weights on the simplest photograph: a wall of one colour."""

import cv2
import numpy as np
import pytest
import torch

from model import DEFAULT_WEIGHTS
from model.inpainting import inpaint
from model.loading import load_for_prediction


@pytest.fixture(scope="module")
def net():
    return load_for_prediction(DEFAULT_WEIGHTS)


@pytest.mark.parametrize("grey", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 8])
def test_a_scratch_on_a_wall_leaves_no_trace(net, width, grey):
    """Weights trained without thin holes fail at the widths 2 and 3."""
    mask = cv2.line(np.ones((256, 256), np.uint8), (50, 100), (200, 120), 0, width)
    image = torch.full((1, 3, 256, 256), grey)
    result = inpaint(net, image, torch.from_numpy(mask).float()[None, None])
    assert (result - image).abs().max() < 6 / 255
