"""Complete text-to-image pipelines of diffusers of about a megabyte, built offline with seeded weights, and captioned images for them."""

import json
import string

import numpy as np
import torch
from PIL import Image

WORDS = ["a", "red", "blue", "green", "square", "circle", "on", "white", "ground", "photo", "of", "sks"]
CAPTIONS = ["a red square", "a blue square", "a green circle", "a photo of a sks circle"]
ALPHABET = string.ascii_lowercase


def clip_tokenizer():
    """The byte alphabet, whole words for nothing."""
    from transformers import CLIPTokenizer

    letters = [*ALPHABET, *(f"{letter}</w>" for letter in ALPHABET)]
    vocabulary = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_tokenizer():
    """Words and letters as pieces."""
    from transformers import T5TokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS), *ALPHABET, "▁"]
    return T5TokenizerFast(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)


def word_tokenizer():
    """Words; what no word is, is unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<unk>", "<eos>", "<bos>", *WORDS]
    model = models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>", "bos_token": "<bos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def clip_encoder(projection=False):
    """A CLIP of two layers."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = CLIPTextConfig(**sizes, vocab_size=64, max_position_embeddings=77, projection_dim=32, hidden_act="gelu",
                            bos_token_id=0, eos_token_id=1, pad_token_id=1)  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5_encoder():
    """A T5 encoder of two layers."""
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 64, "d_ff": 37, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    return T5EncoderModel(T5Config(**sizes, vocab_size=64))


def vae(channels=4, **options):
    """An autoencoder that halves images twice."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    plain = {"use_quant_conv": False, "use_post_quant_conv": False}
    return AutoencoderKL(
        sample_size=16, block_out_channels=(4, 8), layers_per_block=1, latent_channels=channels, norm_num_groups=1,
        shift_factor=0.06, scaling_factor=1.5, **blocks, **plain, **options)  # fmt: skip


def seeded(build, seed=0):
    """What `build` makes, in eval mode, from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = build()
        for parameter in made.parameters():
            if not parameter.any():  # outputs that begin at zero hide what is before them
                torch.nn.init.normal_(parameter, std=0.05)
    return made.eval()


def sd3(**scheduler):
    """Stable Diffusion 3 with both CLIPs and T5; `scheduler`: options of its scheduler."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    sizes = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": 32}
    transformer = seeded(lambda: SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, joint_attention_dim=64, pooled_projection_dim=64, out_channels=4,
        pos_embed_max_size=16, **sizes))  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=seeded(vae),
        text_encoder=seeded(lambda: clip_encoder(projection=True), 1),
        tokenizer=clip_tokenizer(),
        text_encoder_2=seeded(lambda: clip_encoder(projection=True), 2),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=seeded(t5_encoder, 3),
        tokenizer_3=t5_tokenizer(),
    )


def flux(guidance=True, **scheduler):
    """Flux; `guidance`: with an embedding of the guidance scale, as FLUX.1-dev has it."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    transformer = seeded(lambda: FluxTransformer2DModel(
        patch_size=1, in_channels=16, joint_attention_dim=64, pooled_projection_dim=32, guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8), **sizes))  # fmt: skip
    options = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64, **scheduler}
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, **options),
        vae=seeded(vae),
        text_encoder=seeded(clip_encoder, 1),
        tokenizer=clip_tokenizer(),
        text_encoder_2=seeded(t5_encoder, 2),
        tokenizer_2=t5_tokenizer(),
    )


def sana(scheduler=None):
    """Sana with Gemma and a deep-compression autoencoder; `scheduler`: in the place of an Euler one."""
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    transformer = seeded(lambda: SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=32))  # fmt: skip
    autoencoder = seeded(lambda: AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
        scaling_factor=0.41407))  # fmt: skip
    gemma = Gemma2Config(
        head_dim=4, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1,
        num_key_value_heads=2, vocab_size=64, attn_implementation="eager")  # fmt: skip
    return SanaPipeline(
        transformer=transformer,
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder,
        text_encoder=seeded(lambda: Gemma2Model(gemma), 1),
        tokenizer=word_tokenizer(),
    )


PIPELINES = {"sd3": sd3, "flux": flux, "sana": sana}


def captioned(folder, size=16, rows=20, column="text"):
    """A folder of images with metadata.jsonl: squares and circles in the colours their captions name."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    with (folder / "metadata.jsonl").open("w") as metadata:
        for row in range(rows):
            pixels = random.integers(200, 256, (size, size, 3), dtype=np.uint8)
            pixels[4:12, 4:12, row % 3] = random.integers(0, 60)
            Image.fromarray(pixels).save(folder / f"{row}.png")
            metadata.write(json.dumps({"file_name": f"{row}.png", column: CAPTIONS[row % len(CAPTIONS)]}) + "\n")
    return folder


def saved(folder, build):
    """A pipeline in a folder, as its first user finds it."""
    pipeline = build()
    pipeline.save_pretrained(folder)
    return folder


def settings(folder, method="fm", model="lora", **options):
    """Words of a small run on `folder`/base and `folder`/images."""
    from tiny import SMALL_RUN

    objective = {
        "fm": ["--objective.name=fm"],
        "gft": ["--objective.name=gft", "--objective.measure=target"],
        "replay": ["--objective.name=gft", "--objective.replay_samples=8"],
        "prior": ["--objective.name=prior", "--objective.samples=8"],
        "mle": ["--objective.name=mle", "--objective.num_steps=[2]", "--pairs.name=best_of_k", "--pairs.num_steps=2",
                "--pairs.num_candidates=2"],
        "self": ["--objective.name=mle", "--objective.num_steps=[1,4]", "--objective.gradient=truncated",
                 "--pairs.name=self", "--pairs.num_steps=4", "--pairs.num_pairs=16"],
    }[method]  # fmt: skip
    words = {"data.name": "captioned", "data.path": folder / "images", "data.resolution": 16, "model.name": model}
    words |= {
        "model.path": folder / "base",
        "data.base_prompts": folder / "prompts.txt",
        "eval.path_numbers": False,
        "data.base_samples": 0,
    }
    words |= {"model.rank": 2} if model == "lora" else {}
    words = {**words, "train.learning_rate": 0.01, **options}
    return [*SMALL_RUN, *objective, *(f"--{key}={value}" for key, value in words.items())]
