"""Describe composed images as an LVIS v1 file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bsgal_paste._lvis import Lvis


@dataclass(frozen=True, slots=True)
class Job:
    """Name one augmented image: which copy of which image.

    Attributes:
        copy: Counts from 0.
        image: The image's LVIS entry.
        annotations: Its annotations.
    """

    copy: int
    image: Mapping[str, Any]
    annotations: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """Give the name of the output file without its ending."""
        return f"{int(self.image['id']):012d}_{self.copy}"


def composed_annotations(
    lvis: Lvis, jobs: Sequence[Job], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Build the LVIS content for the manifest rows of the jobs; failed ones are left out.

    Images and annotations are numbered from 1. The categories' counts are those of this data set;
    their frequency groups stay those of the source, because they say how rare a category is in
    reality.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    image_counts: dict[int, int] = {}
    instance_counts: dict[int, int] = {}
    for job, row in zip(jobs, rows, strict=True):
        if row["status"] != "ok":
            continue
        image_id = len(images) + 1
        present = {e["category_id"] for e in row["instances"] if not e["iscrowd"]}
        images.append(_image_entry(job, row, image_id))
        for category_id in present:
            image_counts[category_id] = image_counts.get(category_id, 0) + 1
        for entry in row["instances"]:
            category_id = entry["category_id"]
            n_objects = instance_counts.get(category_id, 0)
            instance_counts[category_id] = n_objects + (not entry["iscrowd"])
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **entry})
    categories = [
        {
            **category,
            "image_count": image_counts.get(category["id"], 0),
            "instance_count": instance_counts.get(category["id"], 0),
        }
        for category in lvis.categories
    ]
    info = {**dict(lvis.raw.get("info", {})), "composed_by": "bsgal-paste"}
    return {
        "info": info,
        "licenses": lvis.raw.get("licenses", []),
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _image_entry(job: Job, row: Mapping[str, Any], image_id: int) -> dict[str, Any]:
    """Describe an image, keeping LVIS's promises about categories true.

    A pasted category is no longer absent. Unless all its real objects are known to be annotated
    (it was listed as absent, or is annotated and not listed as incomplete), there may be real ones
    without annotation, so it is listed as incomplete. So is that of a crowd, whose objects have no
    annotations of their own.

    Readers of LVIS v1 take the last two parts of `coco_url` for folder and file, or all of it but
    the name of COCO's server for the path: given relatively, it is the same for both.
    """
    absent = set(job.image.get("neg_category_ids", ()))
    incomplete = set(job.image.get("not_exhaustive_category_ids", ()))
    annotated = {annotation["category_id"] for annotation in job.annotations}
    crowds = {a["category_id"] for a in job.annotations if a.get("iscrowd")}
    pasted = {e["category_id"] for e in row["instances"] if e["instance_id"] is not None}
    kept = {key: job.image[key] for key in ("license", "date_captured") if key in job.image}
    return {
        **kept,
        "id": image_id,
        "file_name": row["file"],
        "coco_url": f"images/{row['file']}",
        "width": job.image["width"],
        "height": job.image["height"],
        "neg_category_ids": sorted(absent - pasted),
        "not_exhaustive_category_ids": sorted(incomplete | crowds | (pasted - absent - annotated)),
        "source_image_id": job.image["id"],
    }
