"""The command `bsgal-generate`: run a plan, look at one, verify or count an image set."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ._categories import load_categories
from ._funnel import funnel, funnel_table
from ._image_set import ImageSet
from ._kept_target import next_round
from ._meta import META_NAME, setting
from ._plan import GenerationPlan
from ._prompt_files import load_prompts, read_prompt_file
from ._scenes import SCENE_PROMPTS, scene_plan
from ._templates import TEMPLATES, PromptTemplate
from .config import SamplingConfig
from .errors import PromptError
from .progress import TextProgress, format_duration

if TYPE_CHECKING:
    from ._pipelines import ImagePipeline
    from ._workers import Workers


_BUILT_IN = "built-in"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if done, 1 on failure, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        status: int = options.command(options)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        print(f"bsgal-generate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbsgal-generate: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return status


def _run(options: argparse.Namespace) -> int:
    from ._generate import generate

    plan = _round(options)
    if options.dry_run:
        return _estimate(plan, options)
    image_set = generate(
        plan,
        _workers(options) or _pipeline(options),
        options.out,
        config=_sampling(options),
        batch_size=options.batch_size,
        progress=TextProgress(),
    )
    counts = Counter(row.status for row in image_set)
    print(", ".join(f"{n} {status}" for status, n in counts.items()), f"in {options.out}")
    return 0


def _round(options: argparse.Namespace) -> GenerationPlan:
    """Return the plan of this run: the given one, or the next round towards a kept target."""
    together = (options.kept_target, options.pool)
    if together == (None, None):
        return _plan(options)
    if None in together or options.scenes:
        raise ValueError("--kept-target and --pool are given together, and with --categories")
    if options.images_per_category is None:
        options.images_per_category = options.kept_target
    planned = next_round(
        _plan(options),
        options.out,
        options.pool,
        kept_target=options.kept_target,
        cap=options.cap,
        max_redraws=options.max_redraws,
    )
    if planned.n_new:
        print(f"{planned.n_new} images in this round")
    else:
        print("nothing to draw: every category has the instances it needs, or is at the cap")
    if planned.capped:
        ids = ", ".join(map(str, planned.capped))
        print(f"too few instances at the cap of {options.cap} images: categories {ids}")
    return planned.plan


def _estimate(plan: GenerationPlan, options: argparse.Namespace) -> int:
    """Count what a run would draw and, where there is something, estimate how long it takes."""
    from ._measure import seconds_per_image

    settled: set[str] = set()
    if (options.out / META_NAME).exists():
        settled = ImageSet.open(options.out).settled(options.max_redraws)
    n_left = sum(sample.sample_id not in settled for sample in plan)
    print(f"{len(plan)} images planned, {len(plan) - n_left} there, {n_left} to draw")
    if n_left:
        seconds = n_left * seconds_per_image(
            plan, _pipeline(options), _sampling(options), options.batch_size
        )
        n_workers = options.ray_workers or len(options.device or [None])
        print(
            f"about {format_duration(seconds / n_workers)} with {n_workers} workers like this "
            f"device, {seconds / 3600:.1f} device hours; redraws not counted"
        )
    return 0


def _show_plan(options: argparse.Namespace) -> int:
    plan = _plan(options)
    if options.list:
        for sample in plan:
            print(json.dumps(asdict(sample), ensure_ascii=False))
        return 0
    n_prompts = sum(len(plan.prompts_of(c.category_id)) for c in plan.categories)
    print(
        f"{len(plan)} images of {len(plan.categories)} categories, {n_prompts} prompts, for example"
    )
    for category in plan.categories[: options.show]:
        for prompt in plan.prompts_of(category.category_id).values():
            print(f"  {category.category_id:>5}  {prompt}")
    if options.measure:
        from ._measure import seconds_per_image

        seconds = seconds_per_image(
            plan, _pipeline(options), _sampling(options), options.batch_size
        )
        print(
            f"{seconds:.2f} s per image here, about {format_duration(seconds * len(plan))} in all"
        )
    return 0


def _verify(options: argparse.Namespace) -> int:
    from ._verify import verify

    image_set = ImageSet.open(options.image_set)
    recorded = partial(setting, image_set.meta, root=image_set.root)
    if options.model is None:
        options.model, plus, upscaler = recorded("model.id").partition(" + ")
        options.upscaler = upscaler if plus else None
    if options.dtype is None:
        options.dtype = recorded("config.pipeline.dtype")
    if options.scheduler is None:
        options.scheduler = recorded("config.pipeline.scheduler.class")
    report = verify(
        image_set,
        _pipeline(options),
        n_rows=options.rows,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    for sample_id, difference in report.grey_level_differences.items():
        print(f"{sample_id}: {difference} grey levels")
    for message in report.damaged.values():
        print(message)
    print(f"largest difference: {report.largest_difference} of 255 grey levels")
    return int(bool(report.damaged) or report.largest_difference > options.tolerance)


def _funnel(options: argparse.Namespace) -> int:
    funnels = funnel(ImageSet.open(options.image_set), options.pool)
    if options.target is None:
        print(funnel_table(funnels))
        return 0
    needed = {entry.category_id: entry.images_for(options.target, options.cap) for entry in funnels}
    print(funnel_table(funnels))
    print(f"images to plan for {options.target} kept instances, at most {options.cap}:")
    for category_id, n_images in needed.items():
        print(f"{category_id:>6} {n_images:>7}")
    return 0


def _plan(options: argparse.Namespace) -> GenerationPlan:
    if options.images_per_category is None:
        raise ValueError("give --images-per-category, or --kept-target with --pool")
    if options.scenes is not None:
        if options.template or options.prompts:
            raise ValueError("--template and --prompts are for categories; give --scenes a file")
        builtin = options.scenes == _BUILT_IN
        return scene_plan(
            options.images_per_category,
            prompts=SCENE_PROMPTS if builtin else read_prompt_file(Path(options.scenes)),
            seed=options.seed,
            negative_prompt=options.negative_prompt,
        )
    categories = load_categories(options.categories)
    return GenerationPlan(
        categories=categories,
        images_per_category=options.images_per_category,
        seed=options.seed,
        templates=tuple(map(_template, options.template or ["single"])),
        prompts={} if options.prompts is None else load_prompts(options.prompts, categories),
        negative_prompt=options.negative_prompt,
    )


def _template(text: str) -> PromptTemplate:
    if text in TEMPLATES:
        return TEMPLATES[text]
    prompt_id, equals, template = text.partition("=")
    if not equals:
        raise PromptError(
            f"unknown template {text!r}; known are {', '.join(TEMPLATES)}, and your own is given "
            "as 'ID=a prompt with {name}'"
        )
    return PromptTemplate(prompt_id, template)


def _sampling(options: argparse.Namespace) -> SamplingConfig:
    values = {f.name: getattr(options, f.name) for f in fields(SamplingConfig)}
    return SamplingConfig(**values | {"pipeline_arguments": dict(options.pipeline_arguments)})


def _pipeline_argument(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    try:
        return name, json.loads(value if equals else "")
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be NAME=JSON, for example eta=0.5; got {text!r}"
        ) from None


def _pipeline(options: argparse.Namespace) -> ImagePipeline:
    return _loader(options)(device=options.device[0] if options.device else None)


def _loader(options: argparse.Namespace) -> Callable[..., ImagePipeline]:
    from ._pipelines import load_pipeline

    return partial(
        load_pipeline,
        options.model,
        revision=options.revision,
        dtype=options.dtype,
        scheduler=options.scheduler,
        upscaler=options.upscaler,
        upscaler_revision=options.upscaler_revision,
        attention_slicing=options.attention_slicing,
        compile_backend=options.compile,
    )


def _workers(options: argparse.Namespace) -> Workers | None:
    """Return the workers that were asked for; None if one process is to draw."""
    devices = options.device or []
    if options.ray_workers is not None:
        from ._ray_workers import RayWorkers

        if devices:
            raise ValueError("--device and --ray-workers exclude each other; see --gpus-per-worker")
        return RayWorkers(
            _loader(options),
            options.ray_workers,
            gpus_per_worker=options.gpus_per_worker,
            address=options.ray_address,
        )
    if len(devices) > 1:
        from ._device_workers import DeviceWorkers

        return DeviceWorkers(_loader(options), devices)
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bsgal-generate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="draw a plan's images into an image set, or go on with it"
    )
    _add_plan_flags(run)
    _add_model_flags(run, model="tiny")
    run.add_argument(
        "--ray-workers", type=int, metavar="N", help="draw with N workers on a Ray cluster"
    )
    run.add_argument(
        "--gpus-per-worker",
        type=float,
        default=1.0,
        metavar="GPUS",
        help="GPUs each Ray worker takes; 0 runs it on CPUs (default: %(default)s)",
    )
    run.add_argument(
        "--ray-address",
        help="the Ray cluster (default: $RAY_ADDRESS, else one on this computer alone)",
    )
    _add_sampling_flags(run)
    run.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the image set's folder"
    )
    run.add_argument(
        "--kept-target",
        type=int,
        metavar="N",
        help="instances each category is to have in --pool; draws the next round of images, whose "
        "size follows from what the pool kept of the rounds before",
    )
    run.add_argument(
        "--pool", type=Path, metavar="POOL", help="the instance pool that is cut from this set"
    )
    run.add_argument(
        "--cap",
        type=int,
        default=1000,
        metavar="N",
        help="with --kept-target, most images of a category (default: %(default)s)",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="count and time what would be drawn; write nothing"
    )
    run.set_defaults(command=_run)

    plan = commands.add_parser("plan", help="show what run would draw, and how long it would take")
    _add_plan_flags(plan)
    _add_model_flags(plan, model="tiny")
    _add_sampling_flags(plan)
    plan.add_argument("--show", type=int, default=10, metavar="N", help="categories to show")
    plan.add_argument("--list", action="store_true", help="print every sample as a line of JSON")
    plan.add_argument("--measure", action="store_true", help="load the model and time one batch")
    plan.set_defaults(command=_show_plan)

    check = commands.add_parser("verify", help="draw some of a set's images again and compare")
    check.add_argument("image_set", type=Path, metavar="IMAGE_SET", help="the image set's folder")
    check.add_argument("--rows", type=int, default=8, metavar="N", help="images to draw again")
    check.add_argument("--seed", type=int, default=0, help="seed of the choice of images")
    check.add_argument(
        "--tolerance",
        type=int,
        default=2,
        metavar="LEVELS",
        help="largest difference, in grey levels of 255, that counts as equal (default: 2)",
    )
    _add_model_flags(check, model=None)
    check.set_defaults(command=_verify)

    count = commands.add_parser("funnel", help="count what each category lost at each stage")
    count.add_argument("image_set", type=Path, metavar="IMAGE_SET", help="the image set's folder")
    count.add_argument("--pool", type=Path, metavar="POOL", help="an instance pool cut from it")
    count.add_argument("--target", type=int, metavar="N", help="instances wanted per category")
    count.add_argument(
        "--cap",
        type=int,
        default=1000,
        metavar="N",
        help="most images per category (default: 1000)",
    )
    count.set_defaults(command=_funnel)
    return parser


def _add_plan_flags(parser: argparse.ArgumentParser) -> None:
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument(
        "--categories",
        type=Path,
        metavar="FILE",
        help="LVIS or COCO annotation file, JSON list of categories, or text with one name a line",
    )
    subject.add_argument(
        "--scenes",
        nargs="?",
        const=_BUILT_IN,
        metavar="FILE",
        help="draw backgrounds instead; FILE holds one prompt a line (default: built-in prompts)",
    )
    parser.add_argument(
        "--images-per-category",
        type=int,
        metavar="N",
        help="images of each category; with --scenes in all, with --kept-target in the first round",
    )
    parser.add_argument(
        "--template",
        action="append",
        metavar="NAME|ID=TEXT",
        help=f"prompt template, may be repeated: {', '.join(TEMPLATES)}, or your own with "
        "{name}, {noun} or {definition} (default: single)",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="DIR",
        help="folder of <category_id>.txt, one prompt a line, which replace the templates there",
    )
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what to steer away from")
    parser.add_argument("--seed", type=int, default=0, help="seed of the whole run (default: 0)")


def _add_model_flags(parser: argparse.ArgumentParser, model: str | None) -> None:
    parser.add_argument(
        "--model",
        default=model,
        help="tiny, a folder in diffusers' layout, or a hub id "
        f"(default: {model or 'the one the set was made with'})",
    )
    parser.add_argument("--revision", help="commit or branch of a hub id; allows downloading it")
    parser.add_argument(
        "--device",
        action="append",
        help="for example cuda:0 or cpu (default: a GPU if there is one); repeated, run starts one "
        "worker process for each",
    )
    parser.add_argument(
        "--dtype",
        help="float32, float16 or bfloat16 (default: on a GPU bfloat16, or float16 where it has "
        "none; float32 on a CPU)",
    )
    parser.add_argument("--scheduler", help="class name of another diffusers scheduler")
    parser.add_argument(
        "--upscaler", metavar="MODEL", help="second stage of a two-stage model such as DeepFloyd IF"
    )
    parser.add_argument(
        "--upscaler-revision", metavar="REVISION", help="as --revision, for the upscaler"
    )
    parser.add_argument(
        "--attention-slicing", action="store_true", help="less memory for attention, less speed"
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        const="inductor",
        metavar="BACKEND",
        help="compile the denoiser; minutes for the first batch of every size (backend: inductor)",
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at a time")


def _add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    helps = {
        "num_inference_steps": "denoising steps (default: the pipeline's)",
        "guidance_scale": "strength of the prompt (default: the pipeline's)",
        "height": "image height in pixels (default: the pipeline's)",
        "width": "image width in pixels (default: the pipeline's)",
        "max_redraws": "redraws of a flagged, blank or non-finite image (default: %(default)s)",
        "blank_std": "least standard deviation of an image in grey levels (default: %(default)s)",
    }
    defaults = SamplingConfig()
    for name, text in helps.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=float if name in ("guidance_scale", "blank_std") else int,
            default=getattr(defaults, name),
            metavar="N",
            help=text,
        )
    parser.add_argument(
        "--pipeline-argument",
        dest="pipeline_arguments",
        type=_pipeline_argument,
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="further argument of the pipeline's call, for example eta=0.5",
    )
