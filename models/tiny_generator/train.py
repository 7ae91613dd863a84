"""Train the tiny text-to-image pipeline and save it as a diffusers folder.

Run `python models/tiny_generator/train.py --out FOLDER --minutes 60`. Ctrl-C keeps the state; the
same command goes on from there.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from autoencoder import DecoderTask, build_autoencoder, reconstruction_psnr_db, to_model_range
from denoiser import DenoiserTask, build_unet
from diffusers import AutoencoderTiny
from pipeline import save_pipeline
from renders import render_data_set
from text import build_text_encoder, build_tokenizer, captions, encode, warm_up
from training import Stage, StageInterruptedError, load_average, run_stage

from bsgal_train.builtin_dataset.categories import BUILTIN_CATEGORIES

DECODER_SHARE = 0.1
N_HELD_OUT = 4


def main() -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished pipeline")
    parser.add_argument("--minutes", type=float, default=60.0, help="training time, default 60")
    parser.add_argument("--work", type=Path, help="folder of renders and states, default OUT.work")
    parser.add_argument("--renders", type=int, default=320, help="per category, default 320")
    parser.add_argument("--processes", type=int, default=2, help="default 2")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    arguments = parser.parse_args()
    work = arguments.work or arguments.out.with_name(arguments.out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    try:
        train(
            work,
            arguments.out,
            seconds=60.0 * arguments.minutes,
            n_renders=arguments.renders,
            n_processes=arguments.processes,
            seed=arguments.seed,
        )
    except (StageInterruptedError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command to go on", file=sys.stderr)
        return 1
    return 0


def train(
    work: Path, out: Path, *, seconds: float, n_renders: int, n_processes: int, seed: int
) -> None:
    """Run all stages that are not finished yet, then save the pipeline.

    Args:
        work: Folder of renders, latents and training states.
        out: Folder of the finished pipeline.
        seconds: Training time of both stages together.
        n_renders: Training images per category.
        n_processes: Training processes.
        seed: Seed of renders, weights and batches.
    """
    torch.manual_seed(seed)
    images = render_data_set(work / "renders.npy", n_renders, seed)
    print(f"renders: {images.shape[0]} categories x {images.shape[1]}", flush=True)

    decoder = Stage(
        name="decoder",
        build=partial(build_decoder_task, work),
        checkpoint=work / "decoder.pt",
        seconds=DECODER_SHARE * seconds,
        n_processes=n_processes,
    )
    run_stage(decoder, seed)
    autoencoder = build_decoder_task(work).autoencoder
    autoencoder.decoder.load_state_dict(
        {name.removeprefix("decoder."): value for name, value in load_average(decoder).items()}
    )
    held_out = images[:, -N_HELD_OUT:].reshape(-1, *images.shape[2:])
    print(f"decoder: {reconstruction_psnr_db(autoencoder, held_out):.1f} dB on held-out renders")
    save_latents(work / "latents.npy", autoencoder, images)

    denoiser = Stage(
        name="denoiser",
        build=partial(build_denoiser_task, work, seed),
        checkpoint=work / "denoiser.pt",
        seconds=(1.0 - DECODER_SHARE) * seconds,
        n_processes=n_processes,
    )
    run_stage(denoiser, seed)
    task = build_denoiser_task(work, seed)
    task.load_state_dict(load_average(denoiser), strict=False)
    save_pipeline(out, autoencoder, task.text_encoder, build_tokenizer(), task.unet)
    print(f"saved {out}")


def build_decoder_task(work: Path) -> DecoderTask:
    """Build the task of the first stage from the renders in the work folder."""
    images = np.load(work / "renders.npy", mmap_mode="r")
    seen = images[:, :-N_HELD_OUT].reshape(-1, *images.shape[2:])
    return DecoderTask(build_autoencoder(np.ascontiguousarray(seen[::20])), seen)


def save_latents(path: Path, autoencoder: AutoencoderTiny, images: np.ndarray) -> None:
    """Encode all renders but the held-out ones, unless the file is there."""
    if path.exists():
        return
    with torch.inference_mode():
        blocks = [
            autoencoder.encode(to_model_range(block[:-N_HELD_OUT])).latents.half().numpy()
            for block in images
        ]
    np.save(path, np.stack(blocks))


def build_denoiser_task(work: Path, seed: int) -> DenoiserTask:
    """Build the task of the second stage from the latents in the work folder."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    ids_per_class = [encode(tokenizer, captions(category)) for category in BUILTIN_CATEGORIES]
    text_encoder = build_text_encoder(tokenizer)
    warm_up(text_encoder, ids_per_class, n_steps=200)
    latents = np.load(work / "latents.npy")
    return DenoiserTask(
        build_unet(), text_encoder, latents, ids_per_class, encode(tokenizer, [""])[0]
    )


if __name__ == "__main__":
    sys.exit(main())
