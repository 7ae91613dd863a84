"""What there is to say about annotations and a pool that can be loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bsgal_paste import InstancePool
from bsgal_train.annotations.lvis import FrequencyLimits, LvisAnnotations

__all__ = [
    "Finding",
    "annotation_findings",
    "lvis_v1_train_problem",
    "pool_findings",
    "split_findings",
]

# LVIS v1: 1203 categories, and in the training file this many of each group.
_N_CATEGORIES_V1 = 1203
_MIN_TRAIN_IMAGES_V1 = 90_000
_GROUP_SIZES_V1 = {"r": 337, "c": 461, "f": 405}


@dataclass(frozen=True, slots=True)
class Finding:
    """Say one thing about the data.

    Attributes:
        severity: With an `error`, no run can start; a `warning` is likely a mistake; a `note`
            only informs.
        text: What, where, and how to mend it.
    """

    severity: Literal["error", "warning", "note"]
    text: str


def annotation_findings(
    document: Mapping[str, Any],
    annotations: LvisAnnotations,
    role: Literal["training", "validation"],
) -> Iterator[Finding]:
    """Look at one annotation file."""
    yield _summary(annotations)
    yield from _federated_findings(document, annotations)
    yield from _box_findings(annotations)
    without = [c.name for c in annotations.categories if not c.image_count]
    if without:
        yield Finding(
            "note", f"{annotations.path}: {_some(without, 'categories')} without an instance"
        )
    if role == "training":
        yield from _count_findings(document, annotations)


def split_findings(training: LvisAnnotations, validation: LvisAnnotations) -> Iterator[Finding]:
    """Compare the training with the validation file."""
    names, other_names = (
        {c.category_id: c.name for c in split.categories} for split in (training, validation)
    )
    pair = f"{training.path} and {validation.path}"
    only_in_one = sorted(names.keys() ^ other_names.keys())
    if only_in_one:
        yield Finding(
            "error",
            f"{pair} define different categories: {_some(only_in_one, 'ids')} in one only; they "
            "may be of different versions",
        )
    renamed = [i for i in names.keys() & other_names.keys() if names[i] != other_names[i]]
    if renamed:
        yield Finding(
            "error",
            f"{pair} give {_some(sorted(renamed), 'ids')} different names (first: "
            f"{names[min(renamed)]!r} and {other_names[min(renamed)]!r}); they may be of "
            "different versions",
        )
    groups, other_groups = (
        {c.category_id: c.frequency for c in split.categories} for split in (training, validation)
    )
    moved = [i for i in groups.keys() & other_groups.keys() if groups[i] != other_groups[i]]
    if moved:
        yield Finding(
            "warning",
            f"{pair} put {_some(sorted(moved), 'category ids')} into different frequency groups; "
            "evaluation uses those of the validation file, which should be the training file's",
        )
    shared = {r.path.resolve() for r in training.images} & {
        r.path.resolve() for r in validation.images
    }
    if shared:
        yield Finding(
            "warning",
            f"{pair} share {_some(sorted(map(str, shared)), 'images')}; the evaluation then "
            "measures memory",
        )


def pool_findings(path: Path, training: LvisAnnotations) -> Iterator[Finding]:
    """Look at which categories a pool can serve."""
    try:
        pool = InstancePool.open(path).match(training.categories)
    except (ValueError, OSError) as error:
        yield Finding("error", str(error))
        return
    served = set(pool.category_ids.tolist())
    shares = ", ".join(
        f"{sum(c.category_id in served for c in group)} of {len(group)} {word}"
        for word, group in (
            (word, [c for c in training.categories if c.frequency == frequency])
            for word, frequency in (("rare", "r"), ("common", "c"), ("frequent", "f"))
        )
    )
    yield Finding("note", f"{path}: {len(pool)} instances for {shares} categories")
    unmatched = pool.card().unmatched
    if unmatched:
        yield Finding(
            "warning",
            f"{path}: {_some(sorted(unmatched), 'categories')} of the pool have no counterpart "
            f"in {training.path} and are not used",
        )


def lvis_v1_train_problem(annotations: LvisAnnotations) -> str | None:
    """Say what is wrong with a file that looks like LVIS v1 train, but is not it.

    That file has 337 rare, 461 common and 405 frequent categories; all numbers reported for LVIS
    rest on these groups.
    """
    sizes = dict(Counter(category.frequency for category in annotations.categories))
    looks_like_it = (
        len(annotations.categories) == _N_CATEGORIES_V1
        and len(annotations.images) >= _MIN_TRAIN_IMAGES_V1
    )
    if not looks_like_it or sizes == _GROUP_SIZES_V1:
        return None
    return (
        f"{annotations.path} looks like LVIS v1 train, which has {_GROUP_SIZES_V1} categories "
        f"per frequency group, but has {sizes}; fetch the file again"
    )


def _summary(annotations: LvisAnnotations) -> Finding:
    sizes = Counter(category.frequency for category in annotations.categories)
    n_instances = sum(category.instance_count for category in annotations.categories)
    n_empty = sum(not record.instances for record in annotations.images)
    return Finding(
        "note",
        f"{annotations.path}: {len(annotations.images)} images ({n_empty} without objects), "
        f"{n_instances} instances, {len(annotations.categories)} categories ({sizes['r']} rare, "
        f"{sizes['c']} common, {sizes['f']} frequent)",
    )


def _federated_findings(
    document: Mapping[str, Any], annotations: LvisAnnotations
) -> Iterator[Finding]:
    known = set(annotations.class_index_of)
    unknown, contradicting = [], []
    for image, record in zip(document["images"], annotations.images, strict=True):
        absent = set(image["neg_category_ids"])
        present = {annotations.categories[i.class_index].category_id for i in record.instances}
        if not (absent | set(image["not_exhaustive_category_ids"])) <= known:
            unknown.append(image["id"])
        if absent & present:
            contradicting.append(image["id"])
    if unknown:
        yield Finding(
            "error",
            f"{annotations.path}: {_some(unknown, 'images')} list unknown categories in "
            "neg_category_ids or not_exhaustive_category_ids",
        )
    if contradicting:
        yield Finding(
            "error",
            f"{annotations.path}: {_some(contradicting, 'images')} list a category in "
            "neg_category_ids that is annotated in them",
        )
    if not any(image["neg_category_ids"] for image in document["images"]):
        yield Finding(
            "warning",
            f"{annotations.path}: no image lists absent categories (neg_category_ids); evaluation "
            "then never counts a detection of a category that an image lacks as wrong",
        )


def _box_findings(annotations: LvisAnnotations) -> Iterator[Finding]:
    flat, outside = [], []
    for record in annotations.images:
        for instance in record.instances:
            x, y, width, height = instance.bbox_xywh
            if width <= 0 or height <= 0:
                flat.append(instance.annotation_id)
            # Annotation tools round: a pixel over the edge is no mistake.
            elif x < -1 or y < -1 or x + width > record.width + 1 or y + height > record.height + 1:
                outside.append(instance.annotation_id)
    if flat:
        yield Finding(
            "warning", f"{annotations.path}: {_some(flat, 'annotations')} with a box without area"
        )
    if outside:
        yield Finding(
            "warning",
            f"{annotations.path}: {_some(outside, 'annotations')} with a box that leaves its "
            "image; were the images resized after annotation?",
        )


def _count_findings(document: Mapping[str, Any], annotations: LvisAnnotations) -> Iterator[Finding]:
    stated = {c["id"]: c.get("image_count") for c in document["categories"]}
    differing = [
        c.name for c in annotations.categories if stated[c.category_id] not in (None, c.image_count)
    ]
    if differing:
        yield Finding(
            "warning",
            f"{annotations.path}: {_some(differing, 'categories')} with an image_count that is "
            "not the number of images here; was the file filtered? The counted numbers are used",
        )
    problem = lvis_v1_train_problem(annotations)
    if problem is not None:
        yield Finding("error", problem)
    limits: FrequencyLimits | None = annotations.frequency_limits
    if limits is not None:
        misplaced = [
            c.name
            for c in annotations.categories
            if c.image_count and c.frequency != limits.group_of(c.image_count)
        ]
        if misplaced:
            yield Finding(
                "warning",
                f"{annotations.path}: {_some(misplaced, 'categories')} in another frequency group "
                "than info.frequency_limits and their images say",
            )


def _some(items: Sequence[object] | Collection[object], noun: str, limit: int = 5) -> str:
    listed = list(items)
    more = ", ..." if len(listed) > limit else ""
    return f"{len(listed)} {noun} ({', '.join(str(item) for item in listed[:limit])}{more})"
