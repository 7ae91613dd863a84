"""Edges of synthetic composites, whose coverage and colours are known exactly."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from bsgal_mask import BorderSegmenter
from bsgal_mask._edges import coverage_from_colours, object_colours

OBJECT_RGB, BACKGROUND_RGB = np.array([170.0, 40, 50]), np.array([225.0, 225, 215])


@pytest.fixture
def composite():
    """Return an image of a disc whose edge is blurred, and the disc's coverage in [0, 1]."""
    canvas = np.zeros((96 * 8, 96 * 8), np.uint8)
    cv2.circle(canvas, (400, 380), 200, 255, -1)
    coverage = cv2.resize(canvas, (96, 96), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    coverage = cv2.GaussianBlur(coverage, (0, 0), 0.7)
    rng = np.random.default_rng(0)
    picture = coverage[..., None] * (OBJECT_RGB - BACKGROUND_RGB) + BACKGROUND_RGB
    picture += rng.normal(0, 2, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), coverage


def test_coverage_is_read_from_the_colours(composite):
    image, coverage = composite
    guess = (coverage > 0.25).astype(np.float32)
    refined = coverage_from_colours(image, guess)
    edge = (coverage > 0.02) & (coverage < 0.98)
    assert np.abs(refined - coverage)[edge].mean() < 0.06
    assert np.abs(guess - coverage)[edge].mean() > 0.2
    assert ((refined >= 0.5) != (coverage >= 0.5)).mean() < 0.001


def test_where_colours_cannot_tell_the_mask_is_kept(composite):
    _, coverage = composite
    grey = np.full((96, 96, 3), 128, np.uint8)
    np.testing.assert_array_equal(coverage_from_colours(grey, coverage), coverage)
    empty = np.zeros((96, 96), np.float32)
    np.testing.assert_array_equal(coverage_from_colours(grey, empty), empty)


def test_only_the_outline_changes(composite):
    image, coverage = composite
    far = (cv2.dilate(coverage, np.ones((9, 9))) == 0) | (cv2.erode(coverage, np.ones((9, 9))) == 1)
    refined = coverage_from_colours(image, coverage)
    np.testing.assert_array_equal(refined[far], coverage[far])
    assert far.any()


def test_border_finds_the_coverage_of_edge_pixels(composite):
    image, coverage = composite
    (mask,) = BorderSegmenter().segment([image], ["ball"])
    (blurred,) = BorderSegmenter(edge_from_colours=False).segment([image], ["ball"])
    assert np.abs(mask - coverage).mean() < 0.5 * np.abs(blurred - coverage).mean()


def test_object_colours_take_the_halo_off(composite):
    image, coverage = composite
    alpha = np.rint(coverage * 255).astype(np.uint8)
    before = image.copy()
    cleaned = object_colours(image, alpha)
    edge = (coverage > 0.1) & (coverage < 0.9)
    plain_error = np.abs(image[edge] - OBJECT_RGB).mean()
    assert np.abs(cleaned[edge] - OBJECT_RGB).mean() < 0.25 * plain_error
    np.testing.assert_array_equal(image, before)


def test_object_colours_leave_solid_and_empty_pixels_alone(composite):
    image, coverage = composite
    alpha = np.rint(coverage * 255).astype(np.uint8)
    cleaned = object_colours(image, alpha)
    settled = (alpha == 0) | (alpha == 255)
    np.testing.assert_array_equal(cleaned[settled], image[settled])
    hard = np.where(alpha > 127, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(object_colours(image, hard), image)


@settings(max_examples=20)
@given(arrays.arrays(np.uint8, (12, 9, 3)), arrays.arrays(np.uint8, (12, 9)))
def test_any_image_and_alpha_give_finite_results(image, alpha):
    mask = alpha.astype(np.float32) / 255
    refined = coverage_from_colours(image, mask)
    assert refined.dtype == np.float32
    assert refined.min() >= 0
    assert refined.max() <= 1
    assert object_colours(image, alpha).dtype == np.uint8
