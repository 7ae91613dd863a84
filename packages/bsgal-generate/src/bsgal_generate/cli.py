"""The command `bsgal-generate`: run a plan, look at one, verify or count an image set."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._categories import load_categories
from ._funnel import funnel, funnel_table
from ._image_set import ImageSet
from ._kept_target import next_round
from ._meta import META_NAME, setting
from ._plan import GenerationPlan
from ._prompt_files import load_prompts, read_prompt_file
from ._scenes import SCENE_PROMPTS, scene_plan
from ._settings_file import add_flags, settings_of, write_settings
from ._templates import TEMPLATES, PromptTemplate
from .config import GenerateConfig, PipelineConfig, PlanConfig
from .errors import PromptError, SettingsError
from .progress import TextProgress, format_duration

if TYPE_CHECKING:
    from ._pipelines import ImagePipeline
    from ._workers import Workers


_BUILT_IN = "built-in"
# What `verify` loads unless told otherwise.
_SETS_OWN = GenerateConfig(pipeline=PipelineConfig(model="the set's own"))

PLAN_FLAGS = {
    "--images-per-category": "plan.images_per_category",
    "--template": "plan.templates",
    "--prompts": "plan.prompts",
    "--seed": "plan.seed",
}
PIPELINE_FLAGS = {
    "--model": "pipeline.model",
    "--dtype": "pipeline.dtype",
    "--device": "workers.devices",
    "--batch-size": "workers.batch_size",
}
RUN_FLAGS = {
    "--num-inference-steps": "sampling.num_inference_steps",
    "--ray-workers": "workers.ray_workers",
    "--kept-target": "rounds.kept_target",
    "--cap": "rounds.cap",
}
"""What is changed daily; everything else is changed in the settings file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if done, 1 on failure, 2 on bad usage, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        status: int = options.command(options)
    except SettingsError as error:
        print(f"bsgal-generate: {error}", file=sys.stderr)
        return 2
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        print(f"bsgal-generate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbsgal-generate: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return status


def _run(options: argparse.Namespace) -> int:
    from ._generate import generate

    config = settings_of(options, GenerateConfig())
    if options.write_config:
        write_settings(options.write_config, config)
        return 0
    plan = _round(options, config)
    if options.dry_run:
        return _estimate(plan, options, config)
    image_set = generate(
        plan,
        _workers(config) or _pipeline(config),
        options.out,
        config=config.sampling,
        batch_size=config.workers.batch_size,
        progress=TextProgress(),
    )
    counts = Counter(row.status for row in image_set)
    print(", ".join(f"{n} {status}" for status, n in counts.items()), f"in {options.out}")
    return 0


def _round(options: argparse.Namespace, config: GenerateConfig) -> GenerationPlan:
    """Return the plan of this run: the given one, or the next round towards a kept target."""
    target, cap = config.rounds.kept_target, config.rounds.cap
    if target is None and options.pool is None:
        return _plan(options, config.plan)
    if target is None or options.pool is None or options.scenes:
        raise ValueError("--kept-target and --pool are given together, and with --categories")
    planned_for = config.plan
    if planned_for.images_per_category is None:
        planned_for = replace(planned_for, images_per_category=target)
    planned = next_round(
        _plan(options, planned_for),
        options.out,
        options.pool,
        kept_target=target,
        cap=cap,
        max_redraws=config.sampling.max_redraws,
    )
    if planned.n_new:
        print(f"{planned.n_new} images in this round")
    else:
        print("nothing to draw: every category has the instances it needs, or is at the cap")
    if planned.capped:
        ids = ", ".join(map(str, planned.capped))
        print(f"too few instances at the cap of {cap} images: categories {ids}")
    return planned.plan


def _estimate(plan: GenerationPlan, options: argparse.Namespace, config: GenerateConfig) -> int:
    """Count what a run would draw and, where there is something, estimate how long it takes."""
    from ._measure import seconds_per_image

    settled: set[str] = set()
    if (options.out / META_NAME).exists():
        settled = ImageSet.open(options.out).settled(config.sampling.max_redraws)
    n_left = sum(sample.sample_id not in settled for sample in plan)
    print(f"{len(plan)} images planned, {len(plan) - n_left} there, {n_left} to draw")
    if n_left:
        per_image = seconds_per_image(
            plan, _pipeline(config), config.sampling, config.workers.batch_size
        )
        seconds = n_left * per_image
        n_workers = config.workers.ray_workers or max(len(config.workers.devices), 1)
        print(
            f"{per_image:.2f} s per image here, about {format_duration(seconds / n_workers)} with "
            f"{n_workers} workers like this device, {seconds / 3600:.1f} device hours; redraws not "
            "counted"
        )
    return 0


def _show_plan(options: argparse.Namespace) -> int:
    plan = _plan(options, settings_of(options, GenerateConfig()).plan)
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
    return 0


def _verify(options: argparse.Namespace) -> int:
    from ._verify import verify

    image_set = ImageSet.open(options.image_set)
    recorded = partial(setting, image_set.meta, root=image_set.root)
    config = settings_of(options, _SETS_OWN)
    pipeline = config.pipeline
    if pipeline.model == _SETS_OWN.pipeline.model:
        model, plus, upscaler = recorded("model.id").partition(" + ")
        pipeline = replace(pipeline, model=model, upscaler=upscaler if plus else None)
    pipeline = replace(
        pipeline,
        dtype=pipeline.dtype or recorded("config.pipeline.dtype"),
        scheduler=pipeline.scheduler or recorded("config.pipeline.scheduler.class"),
    )
    report = verify(
        image_set,
        _pipeline(replace(config, pipeline=pipeline)),
        n_rows=options.rows,
        seed=options.seed,
        batch_size=config.workers.batch_size,
    )
    for sample_id, difference in report.grey_level_differences.items():
        print(f"{sample_id}: {difference} grey levels")
    for message in report.damaged.values():
        print(message)
    print(f"largest difference: {report.largest_difference} of 255 grey levels")
    return int(bool(report.damaged) or report.largest_difference > options.tolerance)


def _funnel(options: argparse.Namespace) -> int:
    print(funnel_table(funnel(ImageSet.open(options.image_set), options.pool)))
    return 0


def _plan(options: argparse.Namespace, config: PlanConfig) -> GenerationPlan:
    if config.images_per_category is None:
        raise ValueError("give --images-per-category, or --kept-target with --pool")
    if options.scenes is not None:
        # In a settings file they may serve other runs.
        if {"plan.templates", "plan.prompts"} & vars(options).keys():
            raise ValueError("--template and --prompts are for categories; give --scenes a file")
        builtin = options.scenes == _BUILT_IN
        return scene_plan(
            config.images_per_category,
            prompts=SCENE_PROMPTS if builtin else read_prompt_file(Path(options.scenes)),
            seed=config.seed,
            negative_prompt=config.negative_prompt,
        )
    categories = load_categories(options.categories)
    return GenerationPlan(
        categories=categories,
        images_per_category=config.images_per_category,
        seed=config.seed,
        templates=tuple(map(_template, config.templates)),
        prompts={} if config.prompts is None else load_prompts(Path(config.prompts), categories),
        negative_prompt=config.negative_prompt,
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


def _pipeline(config: GenerateConfig) -> ImagePipeline:
    devices = config.workers.devices
    return _loader(config)(device=devices[0] if devices else None)


def _loader(config: GenerateConfig) -> Callable[..., ImagePipeline]:
    from ._pipelines import load_pipeline

    return partial(load_pipeline, **asdict(config.pipeline))


def _workers(config: GenerateConfig) -> Workers | None:
    """Return the workers that were asked for; None if one process is to draw."""
    workers = config.workers
    if workers.ray_workers is not None:
        from ._ray_workers import RayWorkers

        if workers.devices:
            raise ValueError(
                "--device and --ray-workers exclude each other; see gpus_per_worker in [workers]"
            )
        return RayWorkers(
            _loader(config),
            workers.ray_workers,
            gpus_per_worker=workers.gpus_per_worker,
            address=workers.ray_address,
        )
    if len(workers.devices) > 1:
        from ._device_workers import DeviceWorkers

        return DeviceWorkers(_loader(config), list(workers.devices))
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bsgal-generate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(
        commands.add_parser("run", help="draw a plan's images into an image set, or go on with it")
    )

    plan = commands.add_parser("plan", help="show what run would draw; needs no model")
    _add_subject(plan)
    plan.add_argument(
        "--show", type=int, default=10, metavar="N", help="categories to show (default: 10)"
    )
    plan.add_argument("--list", action="store_true", help="print every sample as a line of JSON")
    add_flags(plan, GenerateConfig(), PLAN_FLAGS, required=None)
    plan.set_defaults(command=_show_plan)

    check = commands.add_parser(
        "verify",
        help="draw some of a set's images again and compare",
        description="Draw some of a set's images again and compare. Model, number format and "
        "scheduler are those recorded in the set, unless given.",
    )
    check.add_argument("image_set", type=Path, metavar="IMAGE_SET", help="the image set's folder")
    check.add_argument(
        "--rows", type=int, default=8, metavar="N", help="images to draw again (default: 8)"
    )
    check.add_argument(
        "--seed", type=int, default=0, help="seed of the choice of images (default: 0)"
    )
    check.add_argument(
        "--tolerance",
        type=int,
        default=2,
        metavar="LEVELS",
        help="largest difference, in grey levels of 255, that counts as equal (default: 2)",
    )
    add_flags(check, _SETS_OWN, PIPELINE_FLAGS, required=None)
    check.set_defaults(command=_verify)

    count = commands.add_parser("funnel", help="count what each category lost at each stage")
    count.add_argument("image_set", type=Path, metavar="IMAGE_SET", help="the image set's folder")
    count.add_argument("--pool", type=Path, metavar="POOL", help="an instance pool cut from it")
    count.set_defaults(command=_funnel)
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    subject = _add_subject(run)
    out = run.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the image set's folder"
    )
    run.add_argument(
        "--pool",
        type=Path,
        metavar="POOL",
        help="with --kept-target, the instance pool that is cut from this set",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="count and time what would be drawn; write nothing"
    )
    add_flags(
        run, GenerateConfig(), PLAN_FLAGS | PIPELINE_FLAGS | RUN_FLAGS, required=(subject, out)
    )
    run.set_defaults(command=_run)


def _add_subject(parser: argparse.ArgumentParser) -> Any:
    """Add what is drawn, categories or scenes, and return the group of these flags."""
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
    return subject
