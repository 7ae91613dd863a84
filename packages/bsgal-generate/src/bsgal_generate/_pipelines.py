"""Any diffusers text-to-image pipeline behind one call: prompts and seeds in, pixels out."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ._decoder_guard import guarded_decoder
from ._output import flags_of
from ._plan import Sample
from ._two_stage import TwoStagePipeline
from ._weight_hash import weight_hash
from .config import SamplingConfig
from .errors import ModelNotFoundError

TINY = "tiny"
_TINY_DEFAULTS = {"num_inference_steps": 20, "guidance_scale": 3.0}


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a pipeline returned for a batch, before anything is judged or rounded.

    Attributes:
        pixels: float32 of shape (N, H, W, 3), or (N, H, W, 4) with alpha; in [0, 1] where finite.
        flagged: The verdict of the pipeline's safety checker for every image; False without one.
        nonfinite: Whether the decoder's output had NaN or infinite values.
        decoded_again: Whether half precision overflowed and the image was decoded in float32.
    """

    pixels: npt.NDArray[np.float32]
    flagged: tuple[bool, ...]
    nonfinite: tuple[bool, ...]
    decoded_again: tuple[bool, ...]


class ImagePipeline:
    """A diffusers text-to-image pipeline together with what identifies it.

    Args:
        pipeline: The diffusers pipeline, on the device and in the dtype it is to run in.
        model_id: How the pipeline is named in the manifest.
        revision: Commit or branch the weights came from, or None.
        defaults: Values for `num_inference_steps` and `guidance_scale` that replace those of the
            pipeline's own signature.
        execution: How it is run, where that may show in rounding, as JSON values for `meta.json`.
    """

    def __init__(
        self,
        pipeline: Any,
        model_id: str,
        revision: str | None = None,
        defaults: Mapping[str, Any] | None = None,
        execution: Mapping[str, Any] | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.model_id = model_id
        self.revision = revision
        self.weight_hash = weight_hash(pipeline.components)
        self._parameters = inspect.signature(pipeline.__call__).parameters
        self._defaults = dict(defaults or {})
        self.execution = dict(execution or {})
        pipeline.set_progress_bar_config(disable=True)

    @property
    def scheduler_name(self) -> str:
        """Class name of the scheduler."""
        return type(self.pipeline.scheduler).__name__

    @property
    def device(self) -> str:
        """Device the pipeline runs on."""
        return str(self.pipeline.device)

    def describe(self) -> dict[str, Any]:
        """Return class, dtype and scheduler settings as JSON values."""
        description = _describe(self.pipeline)
        if isinstance(self.pipeline, TwoStagePipeline):
            description["upscaler"] = _describe(self.pipeline.upscaler)
        return description

    def resolve(self, config: SamplingConfig) -> tuple[int, float | None]:
        """Return steps and guidance scale; the pipeline's defaults stand in for None.

        The guidance scale is None where the pipeline has no such setting, or leaves it open.

        Raises:
            ValueError: The pipeline leaves the number of steps open and the config does, too.
        """
        steps = config.num_inference_steps or self._default("num_inference_steps")
        if steps is None:
            raise ValueError(
                f"{type(self.pipeline).__name__} has no default for num_inference_steps; give one"
            )
        guidance = config.guidance_scale
        guidance = self._default("guidance_scale") if guidance is None else guidance
        return int(steps), None if guidance is None else float(guidance)

    def _default(self, name: str) -> Any:
        if name in self._defaults:
            return self._defaults[name]
        parameter = self._parameters.get(name)
        has_default = parameter is not None and parameter.default is not inspect.Parameter.empty
        return parameter.default if parameter is not None and has_default else None

    def draw(self, samples: Sequence[Sample], config: SamplingConfig) -> Drawing:
        """Draw one image per sample, each from its own generator.

        The generators live on the CPU whatever the device, so that the initial noise of a seed is
        the same everywhere.

        Args:
            samples: The batch; all must have the same negative prompt.
            config: The sampling settings.

        Raises:
            ValueError: The pipeline does not take one of the settings, or returns no such images.
        """
        self.check(config, samples[0].negative_prompt)
        arguments = {
            "prompt": [sample.prompt for sample in samples],
            "generator": [torch.Generator("cpu").manual_seed(s.seed) for s in samples],
            "output_type": "np",
            **self._settings(config),
        }
        if samples[0].negative_prompt is not None:
            arguments["negative_prompt"] = [sample.negative_prompt for sample in samples]
        with guarded_decoder(self.pipeline) as decoded:
            output = self.pipeline(**arguments)
        positions = range(len(samples))
        pixels = np.asarray(output.images, dtype=np.float32)
        if pixels.ndim != 4 or len(pixels) != len(samples) or pixels.shape[3] not in (3, 4):
            raise ValueError(
                f"{type(self.pipeline).__name__} must return one RGB or RGBA image per prompt, "
                f"shape ({len(samples)}, H, W, 3 or 4), got {pixels.shape}"
            )
        return Drawing(
            pixels=pixels,
            flagged=flags_of(output, len(samples)),
            nonfinite=tuple(i in decoded.nonfinite for i in positions),
            decoded_again=tuple(i in decoded.decoded_again for i in positions),
        )

    def check(self, config: SamplingConfig, negative_prompt: str | None) -> None:
        """Check that the pipeline takes the settings and heeds every one of them.

        Args:
            config: The sampling settings.
            negative_prompt: What to steer away from, or None.

        Raises:
            ValueError: It does not.
        """
        given = set(self._settings(config))
        if negative_prompt is not None:
            given |= {"negative_prompt"}
        if unknown := given - self._parameters.keys():
            raise ValueError(
                f"{type(self.pipeline).__name__} does not take {', '.join(sorted(unknown))}"
            )
        if negative_prompt is not None:
            self._check_negative_prompt_counts(config)
        elif config.pipeline_arguments.get("true_cfg_scale") not in (None, 1):
            raise ValueError(
                f"{type(self.pipeline).__name__} ignores true_cfg_scale without a negative prompt; "
                'give one (" " will do), or no true_cfg_scale'
            )

    def _settings(self, config: SamplingConfig) -> dict[str, Any]:
        steps, guidance = self.resolve(config)
        settings: dict[str, Any] = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "height": config.height,
            "width": config.width,
        }
        given = {name: value for name, value in settings.items() if value is not None}
        return given | dict(config.pipeline_arguments)

    def _check_negative_prompt_counts(self, config: SamplingConfig) -> None:
        """Refuse a negative prompt that the pipeline would pass over in silence.

        Most pipelines do so unless `guidance_scale` is above 1; Flux and its kin, for which that
        is another thing, unless `true_cfg_scale` is.
        """
        name = "true_cfg_scale" if "true_cfg_scale" in self._parameters else "guidance_scale"
        if name == "guidance_scale":
            scale = self.resolve(config)[1]
        else:
            scale = config.pipeline_arguments.get(name, self._default(name))
        if scale is not None and scale <= 1:
            where = "" if name == "guidance_scale" else " in `pipeline_arguments`"
            raise ValueError(
                f"{type(self.pipeline).__name__} ignores a negative prompt unless {name} is above "
                f"1, got {scale}; give a larger one{where}, or no negative prompt"
            )
        denoiser = getattr(self.pipeline, "unet", None)
        if getattr(getattr(denoiser, "config", None), "time_cond_proj_dim", None) is not None:
            raise ValueError(
                f"{self.model_id} ignores negative prompts: its guidance was distilled into the "
                "model (latent consistency); give no negative prompt"
            )


def _describe(pipeline: Any) -> dict[str, Any]:
    settings = {k: v for k, v in pipeline.scheduler.config.items() if k[:1] != "_"}
    return {
        "class": type(pipeline).__name__,
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "scheduler": {"class": type(pipeline.scheduler).__name__, **settings},
    }


def tiny_pipeline_path() -> Path:
    """Return the folder of the built-in `tiny` pipeline, in diffusers' layout."""
    return Path(__file__).with_name("tiny")


def load_pipeline(
    model: str | Path = TINY,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    scheduler: str | None = None,
    upscaler: str | Path | None = None,
    upscaler_revision: str | None = None,
    attention_slicing: bool = False,
    compile_backend: str | None = None,
) -> ImagePipeline:
    """Load a text-to-image pipeline.

    Nothing is downloaded unless both an id and a revision are given.

    Args:
        model: `"tiny"` for the built-in one, a local folder in diffusers' layout, or a hub id such
            as `"owner/name"`.
        revision: Commit or branch of a hub id; allows downloading.
        device: Where to run; None takes the first GPU there is, else the CPU.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`; None takes bfloat16 on a GPU that computes
            with it, float16 on another one, float32 elsewhere.
        scheduler: Class name of another diffusers scheduler, for example
            `"DPMSolverMultistepScheduler"`; None keeps the pipeline's own.
        upscaler: Folder or hub id of the second stage of a two-stage model such as DeepFloyd IF.
        upscaler_revision: Commit or branch of the upscaler's hub id; allows downloading.
        attention_slicing: Compute attention in slices: less memory, and less speed.
        compile_backend: Compile the denoiser with this backend of `torch.compile`, for example
            `"inductor"`; the first batch of every size then takes minutes.

    Returns:
        The pipeline, ready to draw.

    Raises:
        ModelNotFoundError: There is no such pipeline here; the message says how to get it.
        ValueError: Unknown dtype or scheduler, or a pipeline without sliced attention.
    """
    device = torch.device(device or _best_device())
    dtype = _resolve_dtype(dtype, device)
    name = str(model)
    source = tiny_pipeline_path() if name == TINY else model
    pipeline = _from_pretrained(source, name, revision, dtype)
    if scheduler is not None:
        pipeline.scheduler = _scheduler_class(scheduler).from_config(pipeline.scheduler.config)
    stages = [pipeline]
    if upscaler is not None:
        # It works on the embeddings that the base makes; its text encoder would be a second copy.
        stages.append(
            _from_pretrained(
                upscaler, str(upscaler), upscaler_revision, dtype, text_encoder=None, tokenizer=None
            )
        )
        revision = f"{revision} + {upscaler_revision}" if revision or upscaler_revision else None
        name = f"{name} + {upscaler}"
    for stage in stages:
        stage.to(device)
        if attention_slicing:
            _slice_attention(stage)
        if compile_backend is not None:
            _compile(stage, compile_backend)
    return ImagePipeline(
        TwoStagePipeline(*stages) if upscaler is not None else pipeline,
        name,
        revision,
        defaults=_TINY_DEFAULTS if name == TINY else None,
        execution={"attention_slicing": attention_slicing, "compile_backend": compile_backend},
    )


def _slice_attention(pipeline: Any) -> None:
    if not any(hasattr(part, "set_attention_slice") for part in pipeline.components.values()):
        raise ValueError(f"{type(pipeline).__name__} cannot compute attention in slices")
    pipeline.enable_attention_slicing()


def _compile(pipeline: Any, backend: str) -> None:
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    # In place, so that the names of the weights, and so their hash, stay as they are.
    denoiser.compile(backend=backend)


def _from_pretrained(
    source: str | Path, name: str, revision: str | None, dtype: torch.dtype, **parts: None
) -> Any:
    import diffusers

    is_local = isinstance(source, Path) or Path(source).exists() or _looks_like_path(source)
    if is_local and not (Path(source) / "model_index.json").is_file():
        if name == TINY:
            raise ModelNotFoundError(
                f"the built-in pipeline is missing from this installation ({source}); install "
                "bsgal-generate again, or give the folder of another pipeline"
            )
        raise ModelNotFoundError(
            f"no diffusers pipeline at {name}: the folder has no model_index.json; save one there "
            "with `pipeline.save_pretrained(folder)`, or use the built-in one: tiny"
        )
    # diffusers renamed the argument in 0.40 and warns about the old name since.
    version = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    dtype_argument = "dtype" if version >= (0, 40) else "torch_dtype"
    offline = is_local or revision is None
    try:
        # A download shows its progress; reading files from the disk has none worth showing.
        with _without_loading_bars() if offline else nullcontext(), _autoencoder_accepted(name):
            return diffusers.DiffusionPipeline.from_pretrained(
                str(source),
                revision=None if is_local else revision,
                local_files_only=offline,
                use_safetensors=True,
                **{dtype_argument: dtype},
                **parts,
            )
    except OSError as error:
        advice = (
            "Its folder is incomplete."
            if is_local
            else f"Get it with `hf download {name} --local-dir FOLDER` and give FOLDER as the "
            "model, or give a revision to allow the download here; HF_ENDPOINT points at a mirror."
        )
        raise ModelNotFoundError(f"cannot load the pipeline {name!r}: {error}\n{advice}") from error


@contextmanager
def _autoencoder_accepted(name: str) -> Iterator[None]:
    """Drop the remark that `tiny` holds another class of autoencoder: it was trained with it."""

    def other_than_remark(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Expected types for vae")

    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    if name == TINY:
        logger.addFilter(other_than_remark)
    try:
        yield
    finally:
        logger.removeFilter(other_than_remark)


@contextmanager
def _without_loading_bars() -> Iterator[None]:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [
        log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()
    ]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or "\\" in source or source.count("/") != 1


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if _computes_in_bfloat16(device) else torch.float16
    if isinstance(dtype, torch.dtype):
        return dtype
    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in names:
        raise ValueError(f"`dtype` must be one of {', '.join(names)}, got {dtype!r}")
    return names[dtype]


def _computes_in_bfloat16(device: torch.device) -> bool:
    # `torch.cuda.is_bf16_supported` says yes to GPUs that only emulate it, slowly.
    return device.type == "cuda" and (
        torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _scheduler_class(name: str) -> Any:
    import diffusers

    found = getattr(diffusers, name, None)
    if found is None or not name.endswith("Scheduler"):
        raise ValueError(f"`scheduler` must name a scheduler class of diffusers, got {name!r}")
    return found
