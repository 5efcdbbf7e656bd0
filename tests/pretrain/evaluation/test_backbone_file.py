"""Reading backbone files: every tensor, the preprocessing, and converted files of other layouts."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torchvision import transforms

from pretrain.data.augment import normalize, preprocessing_block
from pretrain.engine.result import write_backbone
from pretrain.evaluation.backbone_features import normalization_of, read_backbone
from pretrain.evaluation.labelled_images import FixedView, RandomView, crop_and_flip
from pretrain.models.encoder import backbone_tensors, build_encoder
from ssl_transfer.formats.backbone import MSRA, PTH_METADATA, Preprocessing

PREPROCESSING = Preprocessing.parse(preprocessing_block(), "pre-training's block")


def test_a_file_gives_the_encoder_that_wrote_it(weights: Path) -> None:
    read = read_backbone(weights)
    stored = safetensors.torch.load_file(weights)
    ours = backbone_tensors(read.encoder)
    assert ours.keys() == stored.keys() and all(torch.equal(ours[name], stored[name]) for name in ours)
    assert (read.arch, read.width, read.origin["method"]) == ("resnet18", 512, "simsiam")
    assert not any(module.training for module in read.encoder.modules())


def test_the_files_preprocessing_equals_pre_trainings_normalization() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(normalization_of(PREPROCESSING)(images), normalize(images))


def test_bgr_preprocessing_swaps_the_channels() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    made = normalization_of(MSRA)(images)
    mean = torch.tensor([103.53, 116.28, 123.675]).view(1, 3, 1, 1)
    torch.testing.assert_close(made, images[:, [2, 1, 0]].float() - mean, rtol=1e-5, atol=1e-4)


def test_a_stride_in_the_1x1_is_applied(tmp_path: Path) -> None:
    with torch.device("meta"):
        encoder, _ = build_encoder("resnet50")
    tensors = backbone_tensors(encoder.to_empty(device="cpu"))
    tensors = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    for stride_in_1x1, strides in ((True, ((2, 2), (1, 1))), (False, ((1, 1), (2, 2)))):
        file = tmp_path / f"{stride_in_1x1}.safetensors"
        write_backbone(file, tensors, "resnet50", {**preprocessing_block(), "stride_in_1x1": stride_in_1x1}, {})
        first = read_backbone(file).encoder.layer2[0]
        assert (first.conv1.stride, first.conv2.stride) == strides


def test_a_converted_file_of_torchvisions_names_is_read(weights: Path, tmp_path: Path) -> None:
    """tools/convert.py's `.pth`: a flat OrderedDict whose attribute holds the metadata of a safetensors file."""
    with safetensors.safe_open(weights, "pt") as stream:
        metadata = {**stream.metadata(), "origin": "null", "manifest": "{}"}
    state = OrderedDict(safetensors.torch.load_file(weights))
    setattr(state, PTH_METADATA, metadata)
    torch.save(state, tmp_path / "w.pth")
    read = read_backbone(tmp_path / "w.pth")
    assert read.origin == {} and json.loads(metadata["preprocessing"])["channel_order"] == "RGB"
    ours = backbone_tensors(read.encoder)
    assert all(torch.equal(ours[name], tensor) for name, tensor in state.items())


def photo(width: int, height: int) -> Image.Image:
    pixels = np.random.RandomState(0).randint(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("width", "height"), [(300, 260), (200, 500), (256, 256)])
def test_the_fixed_view_and_normalisation_are_the_originals(width: int, height: int) -> None:
    """Resize(256), CenterCrop(224), ToTensor, Normalize: main_lincls.py's validation."""
    theirs = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )(photo(width, height))
    ours = normalization_of(PREPROCESSING)(FixedView(224, 256)(photo(width, height), 0, 0).unsqueeze(0))[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_the_random_view_is_a_function_of_seed_epoch_and_index() -> None:
    view, image = RandomView(crop_and_flip(32, (0.08, 1.0), 0.5), 3), photo(60, 50)
    same = view(image, 1, 7)
    assert same.shape == (3, 32, 32) and same.dtype == torch.uint8
    assert torch.equal(view(image, 1, 7), same)
    for other in (view(image, 2, 7), view(image, 1, 8), RandomView(view.augmentation, 4)(image, 1, 7)):
        assert not torch.equal(other, same)
