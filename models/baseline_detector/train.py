"""Train the detector that bsgal-train ships, and put it into the package.

    python models/baseline_detector/train.py --out runs/baseline

Started again with the same folder it goes on, and a finished run is only exported.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from bsgal_train.detector import build_detector, load_weights, save_detector
from bsgal_train.engine.run import evaluate, train
from bsgal_train.evaluation import summary_table
from bsgal_train.recipe import Recipe
from bsgal_train.recipe.library import load_recipe

RECIPE = "builtin_baseline"
PACKAGE_DATA = (
    Path(__file__).parents[2] / "packages/bsgal-train/src/bsgal_train" / "baseline"
).resolve()


def main() -> None:
    """Train, export in half precision, evaluate what was exported."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="output folder of the run")
    parser.add_argument("--data", default="bsgal-builtin", help="folder of the built-in set")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = load_recipe(RECIPE).override(f"data.builtin_root={options.data}")
    train(recipe, options.out, progress=lambda done, total, text: print(done, total, text))
    export(recipe, options.out, PACKAGE_DATA)
    # What is shipped runs in fp32 by default: this is the figure for the model card.
    fp32 = recipe.override("detector.precision=fp32")
    print(summary_table(evaluate(fp32, str(PACKAGE_DATA), options.out / "exported")))


def export(recipe: Recipe, run: Path, target: Path) -> None:
    """Write the trained detector of a run in half precision."""
    names = load_categories(run)
    detector = build_detector(recipe.detector, len(names))
    load_weights(detector, str(run), names)
    config = replace(recipe.detector, precision="fp32")
    save_detector(
        target,
        detector,
        config,
        names,
        dtype=torch.float16,
        notes={"recipe": load_recipe(RECIPE).to_dict(), "license": "Apache-2.0"},
    )
    size_mb = (target / "detector.safetensors").stat().st_size / 1e6
    print(f"{target}: {size_mb:.1f} MB")


def load_categories(run: Path) -> list[str]:
    """Return the category names of a trained detector, in the order of its classes."""
    description = json.loads((run / "detector.json").read_text(encoding="utf-8"))
    return list(description["category_names"])


if __name__ == "__main__":
    main()
