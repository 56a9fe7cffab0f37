"""Other projects' checkpoints and networks, made from the descriptions in tests/vectors: slow, plain, independent."""

import hashlib

import numpy as np
import torch
from torch.nn import functional as F

NAOTO, SNEAKY, MMAGIC = "naoto0804", "sneakysketchers", "mmagic"
PROJECTS = (NAOTO, SNEAKY, MMAGIC)


def conv_key(project, side, level):
    return {
        NAOTO: f"{side}_{level}.conv.input_conv",
        SNEAKY: f"{side}_{level}.conv",
        MMAGIC: f"generator.{side}oder.{side}{level}.conv",
    }[project]


def norm_key(project, side, level):
    return {NAOTO: f"{side}_{level}.bn", MMAGIC: f"generator.{side}oder.{side}{level}.bn"}.get(project)


def shapes(project, depth, base):
    """What tests/vectors/*.json holds, key -> shape, for a network of any size."""
    widths = [3, *(base * min(2**level, 8) for level in range(depth + 1))]
    result = {}
    for level in range(1, depth + 1):
        kernel = {1: 7, 2: 5, 3: 5}.get(level, 3)
        small, large = widths[level - 1], widths[level]
        for side, shape in {
            "enc": (large, small, kernel, kernel),
            "dec": (small, small + large, 3, 3),
        }.items():
            conv, norm = conv_key(project, side, level), norm_key(project, side, level)
            result[f"{conv}.weight"] = shape
            if project == NAOTO:
                result[conv.replace("input_conv", "mask_conv") + ".weight"] = shape
            if project == MMAGIC:
                result[f"{conv}.weight_mask_updater"] = shape
            if level == 1 and (side == "dec" or project == MMAGIC):
                result[f"{conv}.bias"] = shape[:1]
            if level > 1 and norm:
                result |= {f"{norm}.{name}": shape[:1] for name in ("weight", "bias", "running_mean", "running_var")}
                result[f"{norm}.num_batches_tracked"] = ()
    return result


def weights(project, key_shapes):
    """The recipe of tests/vectors/README.md."""
    state = {}
    for key, shape in key_shapes.items():
        rng = np.random.RandomState(int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big"))
        if "mask" in key:
            values = np.ones(shape)
        elif key.endswith("num_batches_tracked"):
            values = np.zeros(shape)
        elif key.endswith("running_var"):
            values = rng.uniform(0.5, 1.5, shape)
        elif len(shape) == 4:
            fan_in = shape[1] * shape[2] * shape[3]
            values = rng.standard_normal(shape) * np.sqrt(2 / fan_in) * (fan_in if project == NAOTO else 1)
        elif key.endswith("weight"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.standard_normal(shape) * 0.1
        state[key] = torch.from_numpy(np.asarray(values, np.float32))
    return state


def network(project, state, depth, image, mask):
    """The output of the project's network in evaluation mode, mapped to [0,1]. Masks have as many channels as features.

    image (N,3,H,W) in [0,1]; mask (N,1,H,W).
    """
    mean, std = {
        NAOTO: (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])),
        SNEAKY: (torch.zeros(3), torch.ones(3)),
        MMAGIC: (torch.full((3,), 0.5), torch.full((3,), 0.5)),
    }[project]
    mean, std = mean.view(3, 1, 1).to(image), std.view(3, 1, 1).to(image)

    def layer(x, m, side, level):
        conv, norm = conv_key(project, side, level), norm_key(project, side, level)
        weight, bias = state[f"{conv}.weight"].to(x), state.get(f"{conv}.bias")
        stride, padding = (2 if side == "enc" else 1), weight.shape[-1] // 2
        sum_m = F.conv2d(m, torch.ones_like(weight), None, stride, padding)
        new_mask = (sum_m > 0).to(x)
        sum_1 = weight[0].numel()
        ratio = new_mask / sum_m.clamp(min=1) * (1 if project == NAOTO else sum_1)
        y = F.conv2d(x * m, weight, None, stride, padding) * ratio
        if bias is not None:
            y = y + bias.to(x).view(-1, 1, 1) * new_mask
            if project == SNEAKY:
                y = y * ratio
        if norm and level > 1:
            names = ("running_mean", "running_var", "weight", "bias")
            y = F.batch_norm(y, *(state[f"{norm}.{name}"].to(x) for name in names), training=False)
        if side == "enc":
            y = F.relu(y)
        elif level > 1:
            y = F.leaky_relu(y, 0.2)
        return y, new_mask

    x, m = (image - mean) / std, mask.expand(-1, 3, -1, -1)
    seen = []
    for level in range(1, depth + 1):
        seen.append((x, m))
        x, m = layer(x, m, "enc", level)
    for level in range(depth, 0, -1):
        skip, skip_mask = seen.pop()
        x, m = (t.repeat_interleave(2, 2).repeat_interleave(2, 3) for t in (x, m))
        x, m = layer(torch.cat([x, skip], 1), torch.cat([m, skip_mask], 1), "dec", level)
    return x * std + mean
