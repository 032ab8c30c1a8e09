"""A text-to-image pipeline of a few million parameters for captioned digits: Stable Diffusion 3 in every part, small enough for two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ..randomness import keyed_generator

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STROKES = ("", ", thick", ", thin")
WORDS = ("a", "handwritten", *NUMBERS, "thick", "thin")
SIDE, MAX_TOKENS = 32, 8
TEXT: dict[str, Any] = {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
VAE_STEPS, VAE_BATCH, KL_WEIGHT = 1500, 64, 1e-5


def caption(digit: int, stroke: int) -> str:
    """ "a handwritten seven, thick"."""
    return f"a handwritten {NUMBERS[digit]}{STROKES[stroke]}"


def read_digits(source: str) -> tuple[Tensor, Tensor]:
    """Grey digits (n, 1, 32, 32) in [-1, 1] and their labels: MNIST where `source` holds images/mnist.npz, those of scikit-learn otherwise."""
    if source:
        with np.load(Path(source) / "images" / "mnist.npz") as arrays:
            x, labels = torch.from_numpy(arrays["x_train"]) / 255, torch.from_numpy(arrays["y_train"].astype("int64"))
    else:
        from sklearn.datasets import load_digits

        digits = load_digits()
        x, labels = torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target)
    return 2 * functional.interpolate(x[:, None].float(), size=SIDE, mode="bilinear") - 1, labels


def strokes(images: Tensor, labels: Tensor) -> Tensor:
    """Of every digit the third with most ink is thick (1), that with least is thin (2), the rest neither (0)."""
    ink = images.flatten(1).mean(dim=1)
    found = torch.zeros_like(labels)
    for digit in labels.unique():
        rows = labels == digit
        low, high = ink[rows].quantile(torch.tensor([1 / 3, 2 / 3]))
        found[rows & (ink > high)], found[rows & (ink < low)] = 1, 2
    return found


def write_captioned(path: Path, images: Tensor, labels: Tensor, style: Tensor) -> Path:
    """A parquet file of colour images and their captions."""
    pictures = [PILImage.fromarray(row).convert("RGB") for row in ((images[:, 0] + 1) * 127.5).round().byte().numpy()]
    texts = [caption(digit, stroke) for digit, stroke in zip(labels.tolist(), style.tolist(), strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    features = Features({"image": Image(), "text": Value("string")})
    Dataset.from_dict({"image": pictures, "text": texts}, features).to_parquet(path)
    return path


def untrained_pipeline(images: Tensor, vae_steps: int = VAE_STEPS) -> Any:
    """The pipeline with a trained autoencoder, text encoders and transformer with fresh weights.

    Args: `images`: (n, 1, 32, 32) in [-1, 1], for the autoencoder.  The text encoders stay as they are drawn: captions differ, which is enough.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = train_autoencoder(images, vae_steps)
        words = clip_tokenizer()
        clip = CLIPTextConfig(
            **TEXT, vocab_size=len(words), max_position_embeddings=MAX_TOKENS, projection_dim=32, bos_token_id=0, eos_token_id=1, pad_token_id=1
        )  # fmt: skip
        pieces = t5_tokenizer()
        t5 = T5Config(vocab_size=len(pieces), d_model=64, d_ff=64, d_kv=16, num_heads=4, num_layers=2)
        transformer = SD3Transformer2DModel(
            sample_size=SIDE // 4,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=4,
            attention_head_dim=32,
            num_attention_heads=4,
            caption_projection_dim=128,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            pos_embed_max_size=SIDE // 8,
        )
        return StableDiffusion3Pipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=vae,
            text_encoder=CLIPTextModelWithProjection(clip).eval(),
            tokenizer=words,
            text_encoder_2=CLIPTextModelWithProjection(clip).eval(),
            tokenizer_2=words,
            text_encoder_3=T5EncoderModel(t5).eval(),
            tokenizer_3=pieces,
        )


def train_autoencoder(images: Tensor, steps: int) -> Any:
    """4 channels of 8 x 8 for an image, scaled to mean 0 and standard deviation 1 by its config."""
    from diffusers import AutoencoderKL

    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    sizes: dict[str, Any] = {
        "sample_size": SIDE,
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    plain: dict[str, Any] = {"use_quant_conv": False, "use_post_quant_conv": False}
    vae = AutoencoderKL(latent_channels=4, **sizes, **blocks, **plain)
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = keyed_generator(0, "autoencoder")
    bar = tqdm(range(steps), desc="autoencoder", leave=False)
    for _ in bar:
        x = images[torch.randint(len(images), (VAE_BATCH,), generator=generator)].expand(-1, 3, -1, -1)
        posterior = vae.encode(x).latent_dist
        loss = functional.mse_loss(vae.decode(posterior.sample()).sample, x) + KL_WEIGHT * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
    vae.eval()
    with torch.no_grad():
        latents = vae.encode(images[:512].expand(-1, 3, -1, -1)).latent_dist.mean
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    return vae


def clip_tokenizer() -> Any:
    """Every word a token: the merges build it from its end, where no other word interferes."""
    from transformers import CLIPTokenizer

    letters = sorted({letter for word in WORDS for letter in word} | {","})
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges: dict[Any, None] = {}
    for word in WORDS:
        tail = f"{word[-1]}</w>"
        for letter in reversed(word[:-1]):
            merges[letter, tail] = None
            tail = letter + tail
            tokens.append(tail)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=MAX_TOKENS)


def t5_tokenizer() -> Any:
    """Every word a piece."""
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS), *(f"▁{word}," for word in NUMBERS)]
    scores = [(piece, -float(number)) for number, piece in enumerate(pieces)]
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=MAX_TOKENS)
