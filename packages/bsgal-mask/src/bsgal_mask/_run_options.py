"""The options of `bsgal-mask run`, and what they mean to `build_pool`."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bsgal_mask import (
    AgreementChoice,
    AlphaSegmenter,
    AreaFilter,
    BlurFilter,
    BorderContactFilter,
    BorderSegmenter,
    CategoryBar,
    Choice,
    CleanUp,
    Clip,
    ClipChoice,
    ClipSegSegmenter,
    Edges,
    Filter,
    FixedChoice,
    PartsFilter,
    RealCrops,
    Sam,
    SamBackgroundSegmenter,
    SamBoxSegmenter,
    Segmenter,
    SimilarityRule,
    U2NetSegmenter,
    build_pool,
)

_METHODS = ("border", "u2net", "clipseg", "sam_background", "sam_box", "alpha")
_MODEL = "MODEL"
_BATCHED = (("u2net", U2NetSegmenter), ("clipseg", ClipSegSegmenter), ("SAM", Sam), ("CLIP", Clip))
_DEFAULT: Callable[[str], str] = "{} (default: %(default)s)".format


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; their defaults are those of the classes they configure."""
    parser.epilog = (
        "MODEL is a folder that `save_pretrained` wrote, or ID@REVISION of a hub, which is "
        "downloaded when it is not in the hub's local cache. Nothing else is ever downloaded."
    )
    add = parser.add_argument
    add("image_set", metavar="IMAGE_SET", type=Path, help="folder that bsgal-generate wrote")
    add("--out", metavar="POOL", type=Path, required=True, help="folder of the pool")
    add("--method", dest="methods", action="append", choices=_METHODS,
        help="may be given several times; all are run (default: border)")  # fmt: skip
    _add_choice(parser.add_argument_group("choice between methods"))
    _add_filters(parser.add_argument_group("filters"))
    _add_mask(parser.add_argument_group("mask"))
    _add_models(parser.add_argument_group("models"))
    group = parser.add_argument_group("run")
    build = _defaults(build_pool)
    group.add_argument("--batch-size", type=int, default=build["batch_size"], metavar="N",
                       help=_DEFAULT("images in memory at a time"))  # fmt: skip
    group.add_argument("--max-image-px", type=int, default=build["max_image_px"], metavar="PIXELS",
                       help=_DEFAULT("drop images with more pixels"))  # fmt: skip
    group.add_argument("--dry-run", action="store_true",
                       help="say how many images are left to do, and stop")  # fmt: skip
    group.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(usage_error=parser.error)


def _add_choice(group: Any) -> None:
    add, bar = group.add_argument, CategoryBar()
    add("--choose", choices=("fixed", "agreement", "clip"), default="fixed",
        help=_DEFAULT("`fixed` takes the first --method; `agreement` the one closest to the "
        "others, and drops the image where they differ; `clip` the one whose object, on white, "
        "fits the category's name best"))  # fmt: skip
    add("--min-agreement", type=float, default=AgreementChoice().min_agreement, metavar="IOU",
        help=_DEFAULT("least IoU between methods, 0 to 1, with --choose agreement"))  # fmt: skip
    add("--min-clip-score", type=float, default=bar.min_score, metavar="COSINE",
        help=_DEFAULT("least CLIP score, -1 to 1, with --choose clip"))  # fmt: skip
    add("--clip-tolerance", type=float, default=bar.tolerance, metavar="COSINE",
        help=_DEFAULT("in a category that never reaches --min-clip-score, keep what is within "
        "this of its best, with --choose clip"))  # fmt: skip
    add("--clip-template", default=_defaults(ClipChoice)["template"], metavar="TEXT",
        help=_DEFAULT("text to compare with; {} is the category's name"))  # fmt: skip


def _add_filters(group: Any) -> None:
    add, area, parts = group.add_argument, AreaFilter(), PartsFilter()
    add("--min-area", type=float, default=area.min_frac, metavar="SHARE",
        help=_DEFAULT("least share of the image's pixels, 0 to 1"))  # fmt: skip
    add("--max-area", type=float, default=area.max_frac, metavar="SHARE",
        help=_DEFAULT("largest share of the image's pixels, 0 to 1"))  # fmt: skip
    add("--max-border-contact", type=float, metavar="SHARE",
        help="largest share of the image's outermost pixels that the object may cover, 0 to 1, "
        f"for example {BorderContactFilter().max_frac} (default: no limit)")  # fmt: skip
    add("--min-parts", type=int, default=parts.min_parts, metavar="N",
        help=_DEFAULT("fewest separate parts of an object"))  # fmt: skip
    add("--max-parts", type=int, default=parts.max_parts, metavar="N",
        help="most separate parts of an object (default: no limit)")  # fmt: skip
    add("--min-sharpness", type=float, metavar="LEVELS",
        help="least sharpness in grey levels, 0 to 255, for example "
        f"{BlurFilter().min_sharpness} (default: no limit)")  # fmt: skip
    add("--similar-to", type=Path, metavar="JSON",
        help="LVIS annotations of real objects, with --similar-images and --clip-model; "
        "what looks unlike them is dropped (default: no comparison)")  # fmt: skip
    add("--similar-images", type=Path, metavar="FOLDER", help="images of --similar-to")
    add("--similar-cache", type=Path, metavar="FILE",
        help=".npz file that keeps the features of --similar-to for later runs "
        "(default: computed by every run)")  # fmt: skip
    add("--min-similarity", type=float, default=_defaults(SimilarityRule)["min_similarity"],
        metavar="COSINE", help=_DEFAULT("least mean cosine, -1 to 1, with the real objects of "
        "the category in CLIP"))  # fmt: skip


def _add_mask(group: Any) -> None:
    add, clean_up, edges = group.add_argument, CleanUp(), Edges()
    add("--parts", choices=("all", "largest"), default=clean_up.parts,
        help=_DEFAULT("which parts of the object to keep"))  # fmt: skip
    add("--min-island", type=float, default=clean_up.min_island_frac, metavar="SHARE",
        help=_DEFAULT("remove parts below this share of the image's pixels"))  # fmt: skip
    add("--fill-holes", type=float, default=clean_up.fill_holes_below_frac, metavar="SHARE",
        help=_DEFAULT("fill holes below this share of the image's pixels; 0 keeps all, 1 fills "
        "all"))  # fmt: skip
    add("--edge", type=float, default=clean_up.edge_frac, metavar="SHARE",
        help=_DEFAULT("reach of the soft edge, as a share of the image's mean side"))  # fmt: skip
    add("--edge-coverage", choices=("colours", "method"),
        default="colours" if edges.coverage_from_colours else "method",
        help=_DEFAULT("alpha of edge pixels: the share of object that their colour shows, or the "
        "method's own"))  # fmt: skip
    add("--edge-colours", choices=("image", "object"),
        default="object" if edges.object_colours else "image",
        help=_DEFAULT("colour of edge pixels: the image's, or the object's with the background "
        "taken out"))  # fmt: skip
    add("--label-mask-threshold", type=int,
        default=_defaults(build_pool)["label_mask_threshold"], metavar="ALPHA",
        help=_DEFAULT("label mask = alpha at or above this, 1 to 255"))  # fmt: skip


def _add_models(group: Any) -> None:
    add, u2net, sam = group.add_argument, _defaults(U2NetSegmenter), _defaults(Sam)
    add("--u2net-model", type=Path, metavar="FILE",
        help="ONNX model of the U2-Net family (default: the installed u2netp)")  # fmt: skip
    add("--u2net-provider", default=u2net["provider"], metavar="NAME",
        help=_DEFAULT("ONNX Runtime execution provider"))  # fmt: skip
    add("--u2net-threads", type=int, default=u2net["n_threads"], metavar="N",
        help=_DEFAULT("CPU threads of the model"))  # fmt: skip
    add("--clipseg-model", metavar=_MODEL, help="for clipseg, such as CIDAS/clipseg-rd64-refined")
    add("--sam-model", metavar=_MODEL, help="for sam_background and sam_box, such as "
        "facebook/sam-vit-base")  # fmt: skip
    add("--sam-box-from", choices=_METHODS[:3], default="border",
        help=_DEFAULT("method that finds the boxes of sam_box"))  # fmt: skip
    add("--clip-model", metavar=_MODEL, help="for --choose clip and --similar-to, such as "
        "openai/clip-vit-large-patch14")  # fmt: skip
    add("--device", default=sam["device"], metavar="NAME",
        help=_DEFAULT("torch device of clipseg, SAM and CLIP, such as cuda; never another one "
        "instead"))  # fmt: skip
    add("--dtype", choices=("float32", "float16", "bfloat16"), default=sam["dtype"],
        help=_DEFAULT("number format of clipseg, SAM and CLIP"))  # fmt: skip
    add("--model-batch-size", type=int, metavar="N",
        help="images per run of a model (default: each one's own: "
        + ", ".join(f"{name} {_defaults(model)['batch_size']}" for name, model in _BATCHED)
        + ")")  # fmt: skip


def pool_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `build_pool` that parsed options stand for; loads the models."""
    clip = None
    if options.choose == "clip" or options.similar_to is not None:
        clip = Clip(**_model(options, "--clip-model"), **_torch_settings(options))
    return {
        "methods": _methods(options),
        "choose": _choice(options, clip),
        "filters": _filters(options),
        "similarity": _similarity(options, clip),
        "clean_up": CleanUp(
            parts=options.parts,
            min_island_frac=options.min_island,
            fill_holes_below_frac=options.fill_holes,
            edge_frac=options.edge,
        ),
        "edges": Edges(
            coverage_from_colours=options.edge_coverage == "colours",
            object_colours=options.edge_colours == "object",
        ),
        "label_mask_threshold": options.label_mask_threshold,
        "batch_size": options.batch_size,
        "max_image_px": options.max_image_px,
    }


def _methods(options: argparse.Namespace) -> list[Segmenter]:
    names = options.methods or ["border"]
    sam = None
    if {"sam_background", "sam_box"} & set(names):
        sam = Sam(**_model(options, "--sam-model"), **_torch_settings(options))

    def method(name: str) -> Segmenter:
        if name == "border":
            return BorderSegmenter()
        if name == "alpha":
            return AlphaSegmenter()
        if name == "u2net":
            return U2NetSegmenter(
                options.u2net_model,
                provider=options.u2net_provider,
                n_threads=options.u2net_threads,
                **_batch_size(options),
            )
        if name == "clipseg":
            return ClipSegSegmenter(
                **_model(options, "--clipseg-model"), **_torch_settings(options)
            )
        assert sam is not None
        if name == "sam_background":
            return SamBackgroundSegmenter(sam)
        return SamBoxSegmenter(sam, boxes_from=method(options.sam_box_from))

    return [method(name) for name in names]


def _choice(options: argparse.Namespace, clip: Clip | None) -> Choice:
    if options.choose == "agreement":
        return AgreementChoice(min_agreement=options.min_agreement)
    if options.choose == "fixed":
        return FixedChoice()
    assert clip is not None
    bar = CategoryBar(min_score=options.min_clip_score, tolerance=options.clip_tolerance)
    return ClipChoice(clip=clip, template=options.clip_template, category_bar=bar)


def _filters(options: argparse.Namespace) -> list[Filter]:
    filters: list[Filter] = [AreaFilter(min_frac=options.min_area, max_frac=options.max_area)]
    if options.max_border_contact is not None:
        filters.append(BorderContactFilter(max_frac=options.max_border_contact))
    filters.append(PartsFilter(min_parts=options.min_parts, max_parts=options.max_parts))
    if options.min_sharpness is not None:
        filters.append(BlurFilter(min_sharpness=options.min_sharpness))
    return filters


def _similarity(options: argparse.Namespace, clip: Clip | None) -> SimilarityRule | None:
    if options.similar_to is None:
        return None
    if options.similar_images is None:
        options.usage_error("--similar-to needs --similar-images")
    assert clip is not None
    references = RealCrops.from_lvis(
        clip,
        options.similar_to,
        options.similar_images,
        max_image_px=options.max_image_px,
        cache=options.similar_cache,
    )
    return SimilarityRule(references=references, min_similarity=options.min_similarity)


def _model(options: argparse.Namespace, flag: str) -> dict[str, Any]:
    """Return the model and revision that a flag names, `FOLDER` or `ID@REVISION`."""
    value = getattr(options, flag.strip("-").replace("-", "_"))
    if value is None:
        options.usage_error(f"{flag} is needed: name a folder, or ID@REVISION of a hub")
    if Path(value).exists():
        return {"model": value, "revision": None}
    model, _, revision = value.partition("@")
    return {"model": model, "revision": revision or None}


def _torch_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {"device": options.device, "dtype": options.dtype, **_batch_size(options)}


def _batch_size(options: argparse.Namespace) -> dict[str, Any]:
    size = options.model_batch_size
    return {} if size is None else {"batch_size": size}


def _defaults(function: Callable[..., object]) -> dict[str, Any]:
    return {name: item.default for name, item in inspect.signature(function).parameters.items()}
