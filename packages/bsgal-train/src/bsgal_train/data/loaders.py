"""Loaders over training samples and over test images."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch.utils.data

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.annotations.read_image import read_image
from bsgal_train.data.mapper import TrainingMapper
from bsgal_train.data.reference import DrawnAhead
from bsgal_train.data.sampler import RepeatFactorSampler
from bsgal_train.data.samples import TrainingSample, image_tensor
from bsgal_train.data.skipped_files import SkippedFiles
from bsgal_train.errors import CorruptImageError

__all__ = ["TestLoader", "TrainLoader", "build_test_loader", "build_train_loader"]

Place = tuple[int, int]
"""Position in the run, and index of the image there."""


class TrainLoader:
    """Yield lists of training samples without end. Build one with `build_train_loader`.

    Attributes:
        skipped: Images and instances that could not be read, of all loader processes.
    """

    def __init__(
        self, batches: torch.utils.data.DataLoader[TrainingSample], skipped: SkippedFiles
    ) -> None:
        self._batches = batches
        self.skipped = skipped

    def __iter__(self) -> Iterator[list[TrainingSample]]:
        for samples in self._batches:
            for sample in samples:
                drawn = () if sample.reference is None else sample.reference.skipped
                for message in (*sample.skipped, *drawn):
                    self.skipped.add(message)
            yield samples


class TestLoader:
    """Yield test inputs as detectron2 takes them, once. Build one with `build_test_loader`.

    Attributes:
        skipped: The images that cannot be read. They are left out: their objects count as not
            found.
    """

    __test__ = False  # not a test case, whatever its name

    def __init__(self, images: torch.utils.data.DataLoader[dict[str, Any]]) -> None:
        self._images = images
        self.skipped = SkippedFiles()

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for one in self._images:
            if "skipped" in one:
                self.skipped.add(one["skipped"])
            else:
                yield one


def build_train_loader(
    annotations: LvisAnnotations,
    mapper: TrainingMapper,
    sampler: RepeatFactorSampler,
    batch_size: int,
    n_workers: int,
    start_position: int = 0,
    own: range | None = None,
    skipped: SkippedFiles | None = None,
    reference: DrawnAhead | None = None,
) -> TrainLoader:
    """Build the loader of a run, or of one of its processes.

    Args:
        annotations: The training images.
        mapper: Makes a sample.
        sampler: Chooses the image at each position.
        batch_size: Samples of a step.
        n_workers: Loader processes; 0 loads in this process. The samples are the same.
        start_position: Position of the first sample: where a run is resumed.
        own: Which samples of each step, counted from 0, are this process's; None: all.
        skipped: Counts what cannot be read; None: an own one.
        reference: Gives samples a real image to compare with; None gives none.

    Raises:
        ValueError: `sampler` was made for another number of images.
    """
    if sampler.n_images != len(annotations.images):
        raise ValueError(
            f"`sampler` has {sampler.n_images} repeat factors, but {annotations.path} has "
            f"{len(annotations.images)} images; compute them from the same annotations"
        )
    places = _Places(sampler, batch_size, start_position, own or range(batch_size))
    batches = data_loader(_TrainingSet(mapper, reference), n_workers, batch_sampler=places)
    return TrainLoader(batches, skipped or SkippedFiles())


def build_test_loader(
    annotations: LvisAnnotations,
    *,
    image_px: int = 0,
    image_short_px: int = 0,
    n_workers: int = 0,
    process: int = 0,
    n_processes: int = 1,
) -> TestLoader:
    """Build the loader of an evaluation, over all images in the file's order.

    Args:
        annotations: The images to predict on.
        image_px: Longer side the images are resized to; 0 keeps their size. "height" and "width"
            of an input are the original ones, so the detector gives results in those.
        image_short_px: Shorter side they are resized to, as far as the longer one stays within
            `image_px`; 0: only `image_px` counts.
        n_workers: Loader processes; 0 loads in this process.
        process: Number of this process, where several share the images.
        n_processes: How many there are; each gets every so many-th image.
    """
    own = range(process, len(annotations.images), n_processes)
    images = _TestSet(annotations, image_px, image_short_px)
    return TestLoader(data_loader(images, n_workers, sampler=own, batch_size=None))


class _Places(torch.utils.data.Sampler[list[Place]]):
    """Give the places of batch after batch."""

    def __init__(
        self, sampler: RepeatFactorSampler, batch_size: int, start_position: int, own: range
    ) -> None:
        self._sampler = sampler
        self._batch_size = batch_size
        self._start_position = start_position
        self._own = own

    def __iter__(self) -> Iterator[list[Place]]:
        for start in itertools.count(self._start_position, self._batch_size):
            positions = [start + number for number in self._own]
            yield [(position, self._sampler.image_index(position)) for position in positions]


class _TrainingSet(torch.utils.data.Dataset[TrainingSample]):
    def __init__(self, mapper: TrainingMapper, reference: DrawnAhead | None) -> None:
        self._mapper = mapper
        self._reference = reference

    def __getitem__(self, place: Place) -> TrainingSample:
        sample = self._mapper(*place)
        return sample if self._reference is None else self._reference(sample)


class _TestSet(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, annotations: LvisAnnotations, image_px: int, image_short_px: int) -> None:
        self._annotations = annotations
        self._image_px = image_px
        self._image_short_px = image_short_px

    def __getitem__(self, image_index: int) -> dict[str, Any]:
        record = self._annotations.images[image_index]
        try:
            image = read_image(record)
        except CorruptImageError as error:
            return {"skipped": str(error)}
        return {
            "image": image_tensor(_resized(image, self._image_px, self._image_short_px)),
            "image_id": record.image_id,
            "file_name": str(record.path),
            "height": record.height,
            "width": record.width,
        }


def _resized(
    image: npt.NDArray[np.uint8], longer_px: int, shorter_px: int
) -> npt.NDArray[np.uint8]:
    height, width = image.shape[:2]
    limits = [(longer_px, max(height, width)), (shorter_px, min(height, width))]
    factor = min((wanted / own for wanted, own in limits if wanted), default=1.0)
    if factor == 1.0:
        return image
    size_wh = max(1, round(width * factor)), max(1, round(height * factor))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    resized: npt.NDArray[np.uint8] = cv2.resize(image, size_wh, interpolation=interpolation)
    return resized


def data_loader(dataset: Any, n_workers: int, **order: Any) -> Any:
    return torch.utils.data.DataLoader(
        dataset,
        num_workers=n_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        **order,
    )


def _as_it_is(loaded: Any) -> Any:
    return loaded


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    # Ctrl-C reaches the whole process group; the training process decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
