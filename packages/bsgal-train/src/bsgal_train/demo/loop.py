"""Run the demo's stages in order, each reusing what the one before left on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bsgal_generate import (
    TEMPLATES,
    GenerationPlan,
    GenerationProgress,
    SamplingConfig,
    generate,
    load_categories,
    load_pipeline,
)
from bsgal_mask import BorderSegmenter, U2NetSegmenter, build_pool
from bsgal_score import EvidenceTable
from bsgal_train.builtin_dataset.dataset import ensure_builtin_dataset
from bsgal_train.demo.display import Display
from bsgal_train.demo.settings import DemoSettings
from bsgal_train.demo.stages import StageBook
from bsgal_train.demo.table import demo_report, demo_table
from bsgal_train.engine.run import evaluate, train
from bsgal_train.engine.screen import screen
from bsgal_train.inspect.report import write_page
from bsgal_train.recipe import Recipe
from bsgal_train.recipe.library import load_recipe
from bsgal_train.run_folder.layout import RunFolder, write_json

__all__ = ["run_demo"]

N_LOOKS = 2
"""As many as make a verdict."""


def run_demo(out_dir: str | Path, settings: DemoSettings | None = None) -> Path:
    """Generate, cut, paste, judge and train on the built-in data, and write a report.

    Interrupt it at any time: the same call goes on where it stopped, and a finished stage is
    not done again.

    Args:
        out_dir: Folder of everything the demo makes; made if missing.
        settings: Sizes; None takes the defaults, which fit 12 minutes on two cores.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: The folder holds a demo with other settings.
        OSError: The folder cannot be written.
    """
    settings = settings or DemoSettings()
    out_dir = Path(out_dir)
    _claim_folder(out_dir, settings)
    torch.set_num_threads(settings.threads)
    with Display() as display:
        loop = _Loop(out_dir, settings, display, StageBook(out_dir / "stages", display))
        n_steps = settings.train_steps
        loop.book.run("dataset", "building the data set", loop.build_dataset)
        loop.book.run("images", "generating images", loop.generate_images)
        loop.book.run("pool", "cutting the objects out", loop.cut_out)
        loop.book.run("baseline", "evaluating the shipped detector", loop.evaluate_baseline)
        loop.book.run("control", f"training {n_steps} steps, real data only", loop.train_control)
        loop.book.run("pasted", f"training {n_steps} steps, everything pasted", loop.train_pasted)
        loop.book.run("screening", "looking at every drawn object twice", loop.screen_pool)
        loop.book.run("judged", f"training {n_steps} steps, judging", loop.train_judged)
        page = write_page(demo_report(out_dir, settings, loop.book.records()), loop.page)
        display.say("")
        display.say(demo_table(out_dir))
        display.say(f"\nthe report: {page}")
    return page


def _claim_folder(out_dir: Path, settings: DemoSettings) -> None:
    """Write the settings into the folder, or check that it was made with the same ones."""
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / "demo.json"
    if not path.is_file():
        write_json(path, asdict(settings), indent=1)
        return
    earlier = json.loads(path.read_text(encoding="utf-8"))
    for name, value in asdict(settings).items():
        if earlier.get(name) != value:
            raise ValueError(
                f"{out_dir} holds a demo with {name} = {earlier.get(name)}, now asked for {value}; "
                "choose another --out, or delete that folder"
            )


@dataclass(slots=True)
class _Loop:
    """The stages: each method does one and returns what came of it in a few words."""

    out_dir: Path
    settings: DemoSettings
    display: Display
    book: StageBook

    @property
    def evidence(self) -> Path:
        """The path of what the screening found out."""
        return self.out_dir / "evidence.parquet"

    @property
    def page(self) -> Path:
        """The report page's path."""
        return RunFolder(self.out_dir).report

    def build_dataset(self) -> str:
        """Draw the built-in data set."""
        made = ensure_builtin_dataset(
            self.out_dir / "dataset", seed=self.settings.seed, progress=self.display.update
        )
        document = json.loads(Path(made.train_json).read_text(encoding="utf-8"))
        return (
            f"{len(document['images'])} training images, {len(document['categories'])} categories"
        )

    def generate_images(self) -> str:
        """Generate single-object images of every category with the `tiny` pipeline."""
        categories = load_categories(self.out_dir / "dataset/annotations/lvis_train.json")
        plan = GenerationPlan(
            categories=tuple(categories),
            images_per_category=self.settings.images_per_category,
            # What the shipped pipeline was trained on: names without their sense in parentheses.
            templates=(TEMPLATES["single_noun"],),
            seed=self.settings.seed,
        )

        def show(progress: GenerationProgress) -> None:
            speed = progress.images_per_s
            detail = "" if speed is None else f"{speed:.1f} images/s"
            self.display.update(progress.n_done, progress.n_total, detail)

        image_set = generate(
            plan,
            load_pipeline("tiny"),
            self.out_dir / "images",
            config=SamplingConfig(num_inference_steps=self.settings.num_inference_steps),
            progress=show,
        )
        n_usable = sum(row.status == "ok" for row in image_set)
        return f"{n_usable} usable images of {len(plan)}"

    def cut_out(self) -> str:
        """Cut the objects out; the salient-object model only tells how far it agrees."""
        summary = build_pool(
            self.out_dir / "images",
            self.out_dir / "pool",
            methods=(BorderSegmenter(), U2NetSegmenter()),
            progress=self.display.update,
        )
        return f"{summary.n_kept} instances kept, {summary.n_dropped} dropped"

    def evaluate_baseline(self) -> str:
        """Evaluate the detector that all arms continue."""
        result = evaluate(
            self._recipe(), "baseline", self.out_dir / "baseline", progress=self.display.update
        )
        ap = result.metrics["segm"].ap
        return f"mask AP {100 * ap:.1f}" if ap is not None else "no object to find"

    def train_control(self) -> str:
        """Continue the detector on real images only."""
        return self._train("control", self._recipe())

    def train_pasted(self) -> str:
        """Continue the detector on images with every instance pasted as it is drawn."""
        return self._train("pasted", self._recipe(*self._pasting("paste_all")))

    def screen_pool(self) -> str:
        """Look at every instance with the detector as it is, before any is trained on."""
        # Between the file and the stage's record an earlier start may have been interrupted.
        if self.evidence.is_file():
            table = EvidenceTable.from_parquet(self.evidence)
        else:
            table = screen(
                self._recipe(*self._pasting("instance")),
                self.evidence,
                n_looks=N_LOOKS,
                progress=self.display.update,
            )
        n_rejected = int((table.verdicts == "reject").sum())
        return f"{n_rejected} of {len(table.ids)} instances rejected"

    def train_judged(self) -> str:
        """Continue the detector on what the evidence, of before and of the run, does not reject."""
        return self._train(
            "judged",
            self._recipe(*self._pasting("instance"), f"selection.evidence={self.evidence}"),
        )

    def _pasting(self, mode: str) -> tuple[str, str]:
        return f"paste.pool={self.out_dir / 'pool'}", f"selection.mode={mode}"

    def _recipe(self, *changes: str) -> Recipe:
        return load_recipe("builtin_continue").override(
            f"data.builtin_root={self.out_dir / 'dataset'}",
            f"schedule.n_steps={self.settings.train_steps}",
            f"schedule.seed={self.settings.seed}",
            *changes,
        )

    def _train(self, name: str, recipe: Recipe) -> str:
        result = train(recipe, self.out_dir / name, progress=self.display.update)
        return f"{result.step_s:.2f} s per step"
