"""Partial convolution, U-Net, VGG-16 features for the loss, and loading from files."""

from model.inpainting import inpaint, predict_whole
from model.layer import PartialConv2d
from model.loading import load_for_prediction, load_model, network_of
from model.network import PConvUNet, settle_encoder_batch_norm, with_base_in_decoder
from model.sync_batch_norm import synchronise_batch_norm
from model.vgg import VGG16Features
from utils.arguments import DEFAULT_WEIGHTS

__all__ = [
    "DEFAULT_WEIGHTS",
    "PConvUNet",
    "PartialConv2d",
    "VGG16Features",
    "inpaint",
    "load_for_prediction",
    "load_model",
    "network_of",
    "predict_whole",
    "settle_encoder_batch_norm",
    "synchronise_batch_norm",
    "with_base_in_decoder",
]
