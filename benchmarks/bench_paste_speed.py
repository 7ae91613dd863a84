"""What pasting costs, and what a large instance pool costs to hold.

Pasting: one core, 640 x 640 px, ten instances of 5% to 30% of the image's side from cut-outs of
200 to 450 px, eight annotated objects in the image. Compared with decoding the base image (the
rocket of scikit-image, a JPEG of 640 x 427 px) and resizing it to 640 x 640 with Pillow, as loaders
do, and with OpenCV. The cut-outs are in memory, as the peers have theirs; `from files` reads PNGs.

Peers, in the same run, where they are there:
- the reference copy-paste of torchvision, which no wheel holds: give the file
  `references/detection/transforms.py` of its repository as `--torchvision-reference`. It copies a
  random two thirds of the ten objects of a second image, ours copies all ten; both smooth the edge.
- `CopyAndPaste` of albumentations (package `albumentationsx`), with the same cut-outs and sizes.

Index: a pool of 1.2 million rows. `index_open_s` is the time to open it once its index is kept (the
first opening is in the rows); `private_mb_per_worker` the private memory of a forked loader worker
that has drawn from it, the largest of four that live at the same time, from the kernel's account.

Usage: nox -s bench -- paste_speed [--quick] [--torchvision-reference=FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _harness import Timing, require_tests, time_in_turn, write_result

SIDE_PX, N_PASTED, N_REAL = 640, 10, 8
SCALE_RANGE = (0.05, 0.3)
N_ROWS, QUICK_ROWS, N_WORKERS = 1_200_000, 60_000, 4
BLEND_MODES = ("hard", "alpha", "gaussian", "poisson")
TESTS = ("test_copy_paste.py", "test_blend.py", "test_index_file.py")
LABELS = {
    "decode_resize": "decode and resize the base image (Pillow)",
    "decode_resize_opencv": "decode and resize the base image (OpenCV)",
    **{f"paste_{mode}": f"paste ten instances, {mode}" for mode in BLEND_MODES},
    "paste_from_files": "paste ten instances, hard, reading their PNGs",
    "albumentations": "albumentations `CopyAndPaste`, hard",
    "copy_ours": "copy ten objects of another image, gaussian",
    "copy_torchvision": "torchvision's reference, about six of them, gaussian",
}


def main() -> None:
    """Time everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds; writes no result")
    parser.add_argument("--torchvision-reference", type=Path, help="its transforms.py")
    options = parser.parse_args()
    require_tests(*(f"packages/bsgal-paste/tests/{name}" for name in TESTS))
    with tempfile.TemporaryDirectory() as folder:
        cases, notes = paste_cases(Path(folder), options.torchvision_reference)
        rounds, warmup = (3, 1) if options.quick else (41, 3)
        timings = time_in_turn(cases, rounds=rounds, warmup=warmup)
        index = index_figures(Path(folder), QUICK_ROWS if options.quick else N_ROWS)
    rows: list[dict[str, Any]] = [
        {"case": name, "label": LABELS[name], "ms": quantiles_ms(timing, notes["images"][name])}
        for name, timing in timings.items()
    ]
    headline = headline_of(timings, notes["images"]) | {
        "index_open_s": index["open_s"], "private_mb_per_worker": index["private_mb_forked"],
    }  # fmt: skip
    rows.append({"case": "index", **index})
    rows.append({"case": "left_out", "peers": notes["left_out"]})
    if options.quick:
        print(json.dumps({"rows": rows, "headline": headline}, indent=1))
        print("not written: too few rounds")
        return
    libraries = ["bsgal-paste", "numpy", "opencv-python-headless", "pillow", "scikit-image"]
    libraries += notes["libraries"]
    write_result("paste_speed", rows=rows, headline=headline, libraries=libraries)


def headline_of(timings: dict[str, Timing], images: dict[str, int]) -> dict[str, float]:
    """Return the ratios of medians per image."""
    ms = {name: timing.median_s / images[name] * 1e3 for name, timing in timings.items()}
    ratios = {
        "paste_over_decode_resize": ("paste_hard", "decode_resize"),
        "paste_over_decode_resize_opencv": ("paste_hard", "decode_resize_opencv"),
        "paste_from_files_over_decode_resize": ("paste_from_files", "decode_resize"),
        "torchvision_over_ours": ("copy_torchvision", "copy_ours"),
        "albumentations_over_ours": ("albumentations", "paste_hard"),
    }
    return {
        name: round(ms[over] / ms[under], 3)
        for name, (over, under) in ratios.items()
        if over in ms and under in ms
    }


def quantiles_ms(timing: Timing, n_images: int) -> list[float]:
    """Return the 0.2, 0.5 and 0.8 quantiles in milliseconds per image."""
    return [round(seconds / n_images * 1e3, 3) for seconds in timing.quantiles_s()]


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the tables: milliseconds per image, and the index of a large pool."""
    lines = ["| one core, 640 × 640 px | ms per image |", "|---|---|"]
    for row in result["rows"]:
        if "ms" in row:
            lines.append(f"| {row['label']} | {row['ms'][1]:.1f} |")
    (index,) = (row for row in result["rows"] if row["case"] == "index")
    held = [
        f"| a pool of {index['n_rows']:,} instances | |",
        "|---|---|",
        f"| first opening: read the manifest, keep the index | {index['first_open_s']:.0f} s, "
        f"{index['first_open_peak_mb']:.0f} MB |",
        f"| opening after that | {index['open_s'] * 1e3:.0f} ms |",
        f"| private memory of a forked loader worker | {index['private_mb_forked']:.0f} MB |",
        f"| private memory that the pool adds to a spawned one | "
        f"{index['added_mb_spawned']:.1f} MB |",
        f"| index on disk | {index['file_mb']:.0f} MB |",
    ]
    return {"times": "\n".join(lines), "index": "\n".join(held)}


def paste_cases(
    folder: Path, torchvision_reference: Path | None
) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """Build the timed cases; each goes through a few images."""
    import cv2
    import numpy as np
    import skimage
    from PIL import Image

    from bsgal_paste import (
        AnnotatedImage,
        CategoryBalancedSampler,
        CopyPaste,
        DonorParameters,
        ImageDonors,
        InstancePool,
        PasteParameters,
        UniformScale,
        open_folder_pool,
    )

    cv2.setNumThreads(1)
    jpeg = (Path(skimage.__file__).parent / "data" / "rocket.jpg").read_bytes()

    def decode_resize() -> Any:
        with Image.open(io.BytesIO(jpeg)) as opened:
            resized = opened.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
        return np.asarray(resized)

    def decode_resize_opencv() -> Any:
        bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        return cv2.resize(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), (SIDE_PX, SIDE_PX))

    photo = decode_resize()
    rng = np.random.default_rng(0)
    instances = cut_outs(24, rng)
    masks, category_ids = blobs(N_REAL, rng), rng.integers(1, 6, size=N_REAL)
    pool = InstancePool.from_arrays(instances, [1 + i % 5 for i in range(len(instances))])
    for i, rgba in enumerate(instances):
        (folder / "pool" / str(i % 5)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgba).save(folder / "pool" / str(i % 5) / f"{i}.png")

    def paster(source: InstancePool, blend_mode: Any) -> CopyPaste:
        sampler = CategoryBalancedSampler(source, count_range=(N_PASTED, N_PASTED + 1))
        scale = UniformScale(scale_range=SCALE_RANGE)
        return CopyPaste(source, sampler, scale, blend_mode=blend_mode)

    n_images = 4

    def pasting(paste: CopyPaste) -> Callable[[], object]:
        def run() -> None:
            for seed in range(n_images):
                target = AnnotatedImage(photo, masks, category_ids)
                paste(target, np.random.default_rng([7, seed]))

        return run

    cases: dict[str, Callable[[], object]] = {
        "decode_resize": repeated(decode_resize, n_images),
        "decode_resize_opencv": repeated(decode_resize_opencv, n_images),
    }
    for mode in BLEND_MODES:
        cases[f"paste_{mode}"] = pasting(paster(pool, mode))
    cases["paste_from_files"] = pasting(paster(open_folder_pool(folder / "pool"), "hard"))

    donor_masks = blobs(N_PASTED, np.random.default_rng(1))
    donor = AnnotatedImage(np.ascontiguousarray(photo[::-1]), donor_masks, [1] * N_PASTED)
    copier = CopyPaste(None, source="self", donors=ImageDonors([donor]), blend_mode="gaussian")
    # The first seed with which all of the donor's objects are selected.
    none = np.zeros(0, dtype=np.int64)
    for seed in range(1000):
        copied = DonorParameters(0, 1.0, False, (0.0, 0.0), seed)
        parameters = PasteParameters(
            none, none.astype(float), none.astype(float), none.astype(bool),
            np.zeros((0, 2)), donor=copied,
        )  # fmt: skip
        target = AnnotatedImage(photo, masks, category_ids)
        if copier.apply(target, parameters).n_pasted == N_PASTED:
            break

    def copy_ours() -> None:
        for _ in range(n_images):
            copier.apply(AnnotatedImage(photo, masks, category_ids), parameters)

    cases["copy_ours"] = copy_ours
    notes: dict[str, Any] = {"left_out": {}, "libraries": []}
    if torchvision_reference is None:
        notes["left_out"]["torchvision"] = "no --torchvision-reference"
    else:
        cases["copy_torchvision"] = torchvision_case(
            torchvision_reference, photo, masks, donor_masks, n_images
        )
        notes["libraries"].append("torchvision")
    if importlib.util.find_spec("albumentations") is None:
        notes["left_out"]["albumentations"] = "albumentationsx is not installed"
    else:
        cases["albumentations"] = albumentations_case(photo, masks, instances, n_images)
        notes["libraries"].append("albumentationsx")
    notes["images"] = dict.fromkeys(cases, n_images)
    return cases, notes


def repeated(run: Callable[[], object], n: int) -> Callable[[], object]:
    def all_of_them() -> None:
        for _ in range(n):
            run()

    return all_of_them


def cut_outs(n: int, rng: Any) -> list[Any]:
    """Cut wavy discs of 200 to 450 px out of a photograph of scikit-image."""
    import cv2
    import numpy as np
    import skimage.data

    photo = skimage.data.astronaut()
    instances = []
    for i in range(n):
        height, width = (int(side) for side in rng.integers(200, 450, size=2))
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        radius = np.hypot(x, y) + 0.1 * np.sin(5 * np.arctan2(y, x) + i)
        rgba = np.zeros((height, width, 4), dtype=np.uint8)
        rgba[..., :3] = cv2.resize(photo, (width, height))
        rgba[..., 3] = np.clip((0.9 - radius) * 40, 0, 1) * 255
        instances.append(rgba)
    return instances


def blobs(n: int, rng: Any) -> Any:
    """Make n elliptic masks of 40 to 160 px in an image of 640 x 640."""
    import numpy as np

    rows, columns = np.mgrid[:SIDE_PX, :SIDE_PX]
    masks = np.zeros((n, SIDE_PX, SIDE_PX), dtype=bool)
    for mask in masks:
        y, x = rng.integers(80, SIDE_PX - 80, size=2)
        height, width = rng.integers(20, 80, size=2)
        mask[:] = np.hypot((rows - y) / height, (columns - x) / width) < 1
    return masks


def torchvision_case(
    file: Path, photo: Any, masks: Any, donor_masks: Any, n_images: int
) -> Callable[[], object]:
    """Build the case of torchvision's reference, whose batch of two pastes each into the other."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("torchvision_reference", file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"cannot read {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    transform = module.SimpleCopyPaste(blending=True)
    if n_images % 2:
        raise ValueError("images come in pairs here")

    def tensors(image: Any, stack: Any) -> tuple[Any, dict[str, Any]]:
        from torchvision.ops import masks_to_boxes

        tensor = torch.from_numpy(stack.astype(np.uint8))
        target = {
            "masks": tensor.bool(),
            "boxes": masks_to_boxes(tensor),
            "labels": torch.ones(len(stack), dtype=torch.int64),
        }
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), target

    image, target = tensors(photo, masks)
    donor_image, donor_target = tensors(photo[::-1], donor_masks)

    def run() -> None:
        # A batch of two: each is pasted into the other.
        for seed in range(n_images // 2):
            torch.manual_seed(seed)
            transform([image, donor_image], [target, donor_target])

    return run


def albumentations_case(
    photo: Any, masks: Any, instances: list[Any], n_images: int
) -> Callable[[], object]:
    """Build the case of albumentations, which takes the instances to paste as a list."""
    import albumentations
    import numpy as np

    # Relative to the instance, which fits the image: about the sizes that the others paste.
    mean_side = np.mean([max(rgba.shape[:2]) for rgba in instances])
    low, high = (side * SIDE_PX / mean_side for side in SCALE_RANGE)
    transform = albumentations.Compose(
        [albumentations.CopyAndPaste(scale_range=(low, high), p=1.0)],
        bbox_params=albumentations.BboxParams(
            coord_format="pascal_voc", label_fields=["class_labels"]
        ),
        seed=0,
    )
    boxes = np.array([box_of(mask) for mask in masks], dtype=np.float32)
    stack = masks.astype(np.uint8)
    objects = [
        {
            "image": np.ascontiguousarray(rgba[..., :3]),
            "mask": (rgba[..., 3] >= 128).astype(np.uint8),
            "bbox_labels": {"class_labels": 1},
        }
        for rgba in instances
    ]

    def run() -> None:
        for first in range(n_images):
            transform(
                image=photo, masks=stack, bboxes=boxes, class_labels=[1] * len(masks),
                copy_paste_metadata=objects[first : first + N_PASTED],
            )  # fmt: skip

    return run


def box_of(mask: Any) -> tuple[int, int, int, int]:
    import numpy as np

    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def index_figures(folder: Path, n_rows: int) -> dict[str, Any]:
    """Measure opening a large pool, and what loader workers pay for it, in fresh processes."""
    root = folder / "large"
    root.mkdir()
    (root / "meta.json").write_text(json.dumps({"schema": "bsgal.instance_pool/1"}))
    with (root / "manifest.jsonl").open("w") as lines:
        for i in range(n_rows):
            category_id = 1 + i % 1203
            instance_id = f"{category_id:04d}-{i:08d}"
            row = {
                "instance_id": instance_id, "category_id": category_id, "sample_id": f"{i:08d}",
                "category_name": f"category {category_id}", "label_mask_threshold": 128,
                "file": f"instances/{category_id}/{instance_id}.png", "status": "kept",
                "reason": None, "method": "u2net", "clip_score": 0.27, "area_frac": 0.31,
                "bbox_xywh": [87, 64, 331, 390], "sha256": f"{i:064x}",
            }  # fmt: skip
            lines.write(json.dumps(row) + "\n")
    figures: dict[str, Any] = {"n_rows": n_rows, "n_workers": N_WORKERS}
    figures |= run_here("first_opening", root)
    figures |= run_here("opening", root)
    figures |= run_here("forked_workers", root)
    figures |= run_here("spawned_worker", root)
    figures["file_mb"] = round((root / "manifest.index").stat().st_size / 1e6, 1)
    return figures


def run_here(part: str, root: Path) -> dict[str, Any]:
    """Run one function of this file in a process of its own and return what it prints."""
    command = [sys.executable, "-c", f"import bench_paste_speed as b; b.{part}({str(root)!r})"]
    run = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    figures: dict[str, Any] = json.loads(run.stdout)
    return figures


def opened(root: str) -> tuple[Any, float]:
    from bsgal_paste import InstancePool

    start = time.perf_counter()
    pool = InstancePool.open(root)
    return pool, time.perf_counter() - start


def first_opening(root: str) -> None:
    _, seconds = opened(root)
    status = Path("/proc/self/status").read_text().splitlines()
    peak_mb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1e3
    print(json.dumps({"first_open_s": round(seconds, 2), "first_open_peak_mb": round(peak_mb)}))


def opening(root: str) -> None:
    print(json.dumps({"open_s": round(opened(root)[1], 4)}))


def draw(pool: Any, seed: int) -> None:
    """Do what a loader worker does with the index: 500 images with up to 19 instances."""
    import numpy as np

    from bsgal_paste import CategoryBalancedSampler

    sampler, rng = CategoryBalancedSampler(pool), np.random.default_rng(seed)
    for _ in range(500):
        positions = sampler.sample(rng, np.zeros(0, dtype=np.int64))
        pool.category_ids_of(positions)
        for position in positions.tolist():
            pool.instance_id(position)


def private_mb() -> float:
    """Return this process's private memory as the kernel counts it: what only it holds."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    private = ("Private_Clean:", "Private_Dirty:", "Private_Hugetlb:")
    return sum(int(line.split()[1]) for line in rollup if line.startswith(private)) / 1e3


def forked_workers(root: str) -> None:
    """Fork workers as a data loader does, and print the largest private memory of one."""
    import multiprocessing

    pool, _ = opened(root)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(N_WORKERS), context.Queue()

    def work(seed: int) -> None:
        draw(pool, seed)
        barrier.wait()
        results.put(private_mb())
        barrier.wait()

    workers = [context.Process(target=work, args=(seed,)) for seed in range(N_WORKERS)]
    for worker in workers:
        worker.start()
    largest = max(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    print(json.dumps({"private_mb_forked": round(largest, 1)}))


def spawned_worker(root: str) -> None:
    """Print what unpickling the pool and drawing from it adds to a process."""
    import pickle

    pool, _ = opened(root)
    content = pickle.dumps(pool)
    code = (
        "import pickle, sys, bench_paste_speed as b; from bsgal_paste import InstancePool;"
        "before = b.private_mb(); pool = pickle.loads(sys.stdin.buffer.read()); b.draw(pool, 0);"
        "print(b.private_mb() - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], input=content, capture_output=True, check=True
    )
    figures = {"added_mb_spawned": round(float(run.stdout), 1), "pickle_bytes": len(content)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
