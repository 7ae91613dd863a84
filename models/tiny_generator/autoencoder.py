"""Build the autoencoder: an exact linear encoder and a trained decoder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from muon import Muon
from renders import IMAGE_PX
from torch import nn

PATCH_PX = 8
LATENT_CHANNELS = 8
_ENCODER_WIDTH = 48
_DECODER_WIDTH = 32


def build_autoencoder(images: npt.NDArray[np.uint8]) -> AutoencoderTiny:
    """Build an autoencoder whose encoder is the principal components of 8 x 8 patches.

    The encoder has only linear layers, so its weights can be set instead of trained: every strided
    convolution gathers 2 x 2 pixels into channels, and the last two project onto the components.

    Args:
        images: uint8 RGB `(N, H, W, 3)`, the sample that the components come from.
    """
    autoencoder = AutoencoderTiny(
        encoder_block_out_channels=(_ENCODER_WIDTH,) * 4,
        decoder_block_out_channels=(_DECODER_WIDTH,) * 4,
        num_encoder_blocks=(0, 0, 0, 0),
        num_decoder_blocks=(2, 2, 1, 0),
        latent_channels=LATENT_CHANNELS,
    )
    _start_decoder(autoencoder.decoder.layers)
    _set_encoder(autoencoder.encoder.layers, images)
    return autoencoder


def _start_decoder(layers: nn.Sequential) -> None:
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in layers:
        if isinstance(layer, AutoencoderTinyBlock):
            # A residual branch that starts at zero keeps the scale of the signal.
            nn.init.zeros_(layer.conv[-1].weight)


@torch.no_grad()
def _set_encoder(layers: nn.Sequential, images: npt.NDArray[np.uint8]) -> None:
    first, gather_2, gather_4, gather_8, last = layers
    for layer in layers:
        layer.weight.zero_()
    first.bias.zero_()
    first.weight[range(3), range(3), 1, 1] = 1.0
    for layer, n_channels in ((gather_2, 3), (gather_4, 12)):
        for quarter, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            for channel in range(n_channels):
                layer.weight[quarter * n_channels + channel, channel, 1 + row, 1 + column] = 1.0

    patches = _gather(_gather(_gather(torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0)))
    vectors = patches.permute(0, 2, 3, 1).reshape(-1, 64 * 3)
    mean = vectors.mean(0)
    variances, components = torch.linalg.eigh(torch.cov((vectors - mean).T))
    order = torch.argsort(variances, descending=True)[:_ENCODER_WIDTH]
    projection = components[:, order].T

    for quarter, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        block = slice(quarter * 48, quarter * 48 + 48)
        gather_8.weight[:, :48, 1 + row, 1 + column] = projection[:, block]
    # Partly whitened: diffusion learns strong components first, and weak ones hold little.
    scale = variances[order][:LATENT_CHANNELS].sqrt().rsqrt()
    latent_variance = (variances[order][:LATENT_CHANNELS] * scale.square()).mean()
    scale = scale / latent_variance.sqrt()
    channels = range(LATENT_CHANNELS)
    last.weight[channels, channels, 1, 1] = scale
    last.bias.copy_(-scale * (projection @ mean)[:LATENT_CHANNELS])


def _gather(x: torch.Tensor) -> torch.Tensor:
    """Move every 2 x 2 block of pixels into channels, in the encoder's order."""
    return torch.cat([x[..., r::2, c::2] for r in (0, 1) for c in (0, 1)], dim=1)


def to_model_range(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return uint8 images `(N, H, W, 3)` as float `(N, 3, H, W)` in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return tensor.float() / 127.5 - 1.0


class DecoderTask(nn.Module):
    """Train the decoder to restore images from their slightly noisy latents."""

    def __init__(self, autoencoder: AutoencoderTiny, images: npt.NDArray[np.uint8]) -> None:
        super().__init__()
        self.decoder = autoencoder.decoder.to(memory_format=torch.channels_last)
        self._autoencoder = [autoencoder]  # in a list: only the decoder is trained and saved
        self._images = images
        self.learning_rate = 4e-3
        self.optimizer = Muon(self.parameters(), self.learning_rate)

    @property
    def autoencoder(self) -> AutoencoderTiny:
        """Return the autoencoder that the decoder belongs to."""
        return self._autoencoder[0]

    def loss(self, rng: np.random.Generator, time_share: float) -> torch.Tensor:
        """Return the reconstruction loss of random crops, and of whole images towards the end."""
        if time_share < 0.75:
            picks, region = rng.integers(len(self._images), size=16), _random_crop(rng)
        else:
            picks, region = rng.integers(len(self._images), size=8), (slice(None), slice(None))
        target = to_model_range(self._images[(np.sort(picks), *region)])
        with torch.no_grad():
            latents = self.autoencoder.encoder(target)
            noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
        with torch.autocast("cpu", torch.bfloat16):
            restored = self.decoder(latents + 0.05 * noise)
        error = restored.float() - target
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return error.abs().mean() + error.square().mean() + 0.5 * edges


def _random_crop(rng: np.random.Generator) -> tuple[slice, slice]:
    """Return a square of half the image's side, aligned with the patches."""
    row, column = PATCH_PX * rng.integers(IMAGE_PX // PATCH_PX // 2 + 1, size=2)
    return slice(row, row + IMAGE_PX // 2), slice(column, column + IMAGE_PX // 2)


@torch.no_grad()
def reconstruction_psnr_db(autoencoder: AutoencoderTiny, images: npt.NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of reconstructed images, in dB."""
    target = to_model_range(images)
    restored = autoencoder(target).sample.clamp(-1, 1)
    return float(10 * torch.log10(4.0 / (restored - target).square().mean()))
