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


SCRATCHES = {"flat": ((50, 100), (200, 120)), "steep": ((128, 40), (120, 210)), "diagonal": ((60, 50), (180, 200))}


@pytest.mark.parametrize("noise", [0, 1])
@pytest.mark.parametrize("grey", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("scratch", SCRATCHES)
def test_a_scratch_on_a_wall_leaves_no_trace(net, scratch, width, grey, noise):
    """Unlimited, what the network adds is off by up to 17 levels at a steep scratch 2 px wide. noise: levels."""
    mask = cv2.line(np.ones((256, 256), np.uint8), *SCRATCHES[scratch], 0, width)
    wall = torch.full((1, 3, 256, 256), grey)
    image = wall + noise / 255 * torch.randn(wall.shape, generator=torch.Generator().manual_seed(0))
    result = inpaint(net, image, torch.from_numpy(mask).float()[None, None]).where(torch.from_numpy(mask) == 0, wall)
    assert (result - wall).abs().max() < (0.5 + 5.5 * noise) / 255
