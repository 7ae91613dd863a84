"""Put the trained parts together as a Stable Diffusion pipeline and save it small."""

from __future__ import annotations

import json
from pathlib import Path

from denoiser import build_scheduler
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from text import save_tokenizer
from transformers import CLIPTextModel, CLIPTokenizer


def save_pipeline(
    folder: Path,
    autoencoder: AutoencoderTiny,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> None:
    """Save a pipeline in half precision that loads in single precision without further arguments.

    Args:
        folder: Where to write.
        autoencoder: Converted in place, as are the other parts.
        text_encoder: Likewise.
        tokenizer: Saved with the files that older versions of transformers read.
        unet: Likewise.
    """
    pipeline = StableDiffusionPipeline(
        vae=autoencoder.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(tokenizer, folder / "tokenizer")
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)  # written readable by the owner alone
    # Transformers 5 loads the type its configuration names, diffusers loads single precision.
    _edit_config(folder / "text_encoder" / "config.json", dtype="float32")
    # Diffusers derives this entry itself and warns when it finds it.
    _edit_config(folder / "vae" / "config.json", block_out_channels=None)


def _edit_config(path: Path, **entries: str | None) -> None:
    """Set entries of a JSON configuration, or drop those set to None."""
    config = json.loads(path.read_text(encoding="utf-8")) | entries
    kept = {key: value for key, value in config.items() if value is not None or key not in entries}
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
