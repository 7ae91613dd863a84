"""Two pipelines as one: a base that draws small images and an upscaler, as in DeepFloyd IF."""

from __future__ import annotations

from typing import Any

import torch

from ._output import flags_of


class TwoStagePipeline:
    """Follows diffusers' calling convention for a base pipeline and its upscaler.

    The prompt is encoded once, by the base, so the upscaler may be without its text encoder. Both
    stages draw from the same generator per image, one after the other, so an image still depends on
    its own seed alone.

    Args:
        base: For example an `IFPipeline`.
        upscaler: For example an `IFSuperResolutionPipeline`.
    """

    def __init__(self, base: Any, upscaler: Any) -> None:
        self.base = base
        self.upscaler = upscaler

    @property
    def components(self) -> dict[str, Any]:
        """The parts of both, by stage and name."""
        stages = {"base": self.base, "upscaler": self.upscaler}
        return {
            f"{stage}.{name}": part
            for stage, pipeline in stages.items()
            for name, part in pipeline.components.items()
        }

    @property
    def scheduler(self) -> Any:
        """The base's scheduler."""
        return self.base.scheduler

    @property
    def device(self) -> torch.device:
        """Device of the base."""
        device: torch.device = self.base.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the base."""
        dtype: torch.dtype = self.base.dtype
        return dtype

    def set_progress_bar_config(self, **options: Any) -> None:
        """Configure the progress bars of both."""
        for pipeline in (self.base, self.upscaler):
            pipeline.set_progress_bar_config(**options)

    def __call__(
        self,
        prompt: list[str],
        *,
        generator: list[torch.Generator],
        num_inference_steps: int = 100,
        guidance_scale: float = 7.0,
        negative_prompt: list[str] | None = None,
        upscaler_steps: int = 50,
        upscaler_guidance_scale: float = 4.0,
        noise_level: int = 250,
        output_type: str = "pil",
    ) -> Any:
        """Draw one image per prompt.

        Args:
            prompt: The prompts.
            generator: One random generator per prompt.
            num_inference_steps: Steps of the base.
            guidance_scale: Guidance of the base.
            negative_prompt: What to steer away from, one per prompt, in both stages.
            upscaler_steps: Steps of the upscaler.
            upscaler_guidance_scale: Guidance of the upscaler.
            noise_level: How much noise the upscaler adds to the small image, in its own steps.
            output_type: As diffusers has it.

        Returns:
            The upscaler's output; an image that either stage's safety checker flagged is flagged.
        """
        embeds, negative_embeds = self.base.encode_prompt(
            prompt, do_classifier_free_guidance=True, negative_prompt=negative_prompt
        )
        encoded = {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
        small = self.base(
            **encoded,
            generator=generator,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            output_type="np",
        )
        output = self.upscaler(
            # The upscaler wants values from -1 to 1, channels first.
            image=torch.from_numpy(small.images).permute(0, 3, 1, 2).mul(2).sub(1).to(self.dtype),
            **encoded,
            generator=generator,
            num_inference_steps=upscaler_steps,
            guidance_scale=upscaler_guidance_scale,
            noise_level=noise_level,
            output_type=output_type,
        )
        n = len(prompt)
        flagged = zip(flags_of(small, n), flags_of(output, n), strict=True)
        output.nsfw_detected = [first or second for first, second in flagged]
        return output
