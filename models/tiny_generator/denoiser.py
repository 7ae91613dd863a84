"""Build the denoising UNet and its scheduler, and train them together with the text encoder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from autoencoder import LATENT_CHANNELS, PATCH_PX
from diffusers import DDIMScheduler, UNet2DConditionModel
from renders import IMAGE_PX
from torch import nn
from transformers import CLIPTextModel


def build_unet() -> UNet2DConditionModel:
    """Build the UNet with random weights.

    The text reaches it in two ways: pooled, added to the time embedding that scales and shifts
    every block, and token by token through cross-attention at the lowest resolution.
    """
    return UNet2DConditionModel(
        sample_size=IMAGE_PX // PATCH_PX,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 128, 144),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=48,  # read by diffusers as the number of heads
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def build_scheduler() -> DDIMScheduler:
    """Build the noise schedule, which ends in pure noise, and its deterministic sampler."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=True,
    )


class DenoiserTask(nn.Module):
    """Train UNet and text encoder to predict the velocity of noised latents."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        latents: npt.NDArray[np.float16],
        ids_per_class: list[torch.Tensor],
        empty_ids: torch.Tensor,
    ) -> None:
        """Keep what is trained and what it is trained on.

        Args:
            unet: Trained in place.
            text_encoder: Trained in place.
            latents: `(n_classes, n_renders, C, H, W)`.
            ids_per_class: For each class the token ids of its captions.
            empty_ids: Token ids of the empty prompt.
        """
        super().__init__()
        self.unet = unet.to(memory_format=torch.channels_last)
        self.text_encoder = text_encoder
        self._latents = latents
        self._ids_per_class = ids_per_class
        self._empty_ids = empty_ids
        self._alphas = build_scheduler().alphas_cumprod
        self.learning_rate = 1.5e-3
        self.optimizer = torch.optim.AdamW(
            self.parameters(), betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )
        self.batch_size = 16

    def loss(self, rng: np.random.Generator, time_share: float) -> torch.Tensor:
        """Return the velocity loss of a random batch."""
        n_classes, n_renders = self._latents.shape[:2]
        labels = rng.integers(n_classes, size=self.batch_size)
        clean = torch.from_numpy(
            self._latents[labels, rng.integers(n_renders, size=self.batch_size)].astype(np.float32)
        )
        ids = torch.stack([self._caption_ids(label, rng) for label in labels])
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        timesteps = torch.from_numpy(self._timesteps(rng))
        alpha = self._alphas[timesteps].sqrt()[:, None, None, None]
        sigma = (1.0 - self._alphas[timesteps]).sqrt()[:, None, None, None]
        noisy = (alpha * clean + sigma * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            states = self.text_encoder(ids).last_hidden_state
            velocity = self.unet(noisy, timesteps, states).sample
        return nn.functional.mse_loss(velocity.float(), alpha * noise - sigma * clean)

    def _caption_ids(self, label: int, rng: np.random.Generator) -> torch.Tensor:
        if rng.random() < 0.1:
            return self._empty_ids
        ids = self._ids_per_class[label]
        return ids[rng.integers(len(ids))]

    def _timesteps(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Draw timesteps, most of them from the middle, where the shape is decided."""
        middle = 1.0 / (1.0 + np.exp(-rng.standard_normal(self.batch_size)))
        anywhere = rng.random(self.batch_size)
        chosen = np.where(rng.random(self.batch_size) < 0.7, middle, anywhere)
        return np.minimum((1000 * chosen).astype(np.int64), 999)
