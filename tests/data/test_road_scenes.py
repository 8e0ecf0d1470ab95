"""Generated road scenes: what is in them, how often, and where."""
import numpy as np
import pytest

from minimoe.data import road_scenes
from minimoe.data.road_scenes import (
    CAR, IN_TOWNS_ALONE, LANE, ON_HIGHWAYS_ALONE, PEDESTRIAN, ROAD, SKY, TRUCK, VEGETATION, Scenes)

FREQUENCIES = {   # of the ten classes, per cent of pixels, as the recipe's author measured them
    road_scenes.highway: (33, 19, 6, 33, 3, 2, 4, 0, 0, 0),
    road_scenes.urban: (16, 15, 1, 1, 3, 0, 0, 31, 30, 3)}


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    return {paint: road_scenes.scenes(rng, paint, 200)
            for paint in (road_scenes.highway, road_scenes.urban, road_scenes.ambiguous)}


@pytest.mark.parametrize("paint", FREQUENCIES, ids=lambda paint: paint.__name__)
def test_class_frequencies(made, paint):
    label = made[paint].label
    found = 100 * np.bincount(label.ravel(), minlength=10) / label.size
    assert abs(found - FREQUENCIES[paint]).max() < 1.5
    assert ((found == 0) == (np.array(FREQUENCIES[paint]) == 0)).all()


def test_ambiguous_scenes_put_together_what_the_contexts_keep_apart(made):
    label = made[road_scenes.ambiguous].label

    def seen(*classes):
        return np.isin(label, classes).any(axis=(1, 2))

    verge = (label == VEGETATION).mean(axis=(1, 2)) > .2
    assert .4 < verge.mean() < .6 and .35 < seen(TRUCK).mean() < .6
    assert (seen(TRUCK) & ~verge).any() and (seen(PEDESTRIAN) & verge).any()
    assert not np.isin(label, ON_HIGHWAYS_ALONE[:1]).any()             # no guardrail
    assert not (np.isin(label, IN_TOWNS_ALONE[:2]).any(axis=(1, 2)) & verge).any()


@pytest.mark.parametrize("paint", FREQUENCIES, ids=lambda paint: paint.__name__)
def test_what_a_scene_looks_like(made, paint):
    image, label = made[paint]
    assert image.shape == (200, 24, 32, 3) and 0 <= image.min() and image.max() <= 1
    assert (label[:, 0] == SKY).mean() > .5 and not np.isin(label[:, 12:], SKY).any()
    assert (label[:, -1, 12:20] != VEGETATION).all()                   # the road ends at our feet
    assert np.isin(label[:, -1, 16], (ROAD, LANE, CAR, PEDESTRIAN, TRUCK)).all()
    bright = image[label == LANE].mean() - image[label == ROAD].mean()
    assert bright > .4


def test_the_same_generator_paints_the_same_scenes():
    once, again = (road_scenes.scenes(np.random.default_rng(3), road_scenes.urban, 2)
                   for _ in range(2))
    assert (once.image == again.image).all() and (once.label == again.label).all()
    assert (once.label[0] != once.label[1]).any()


def test_flips_take_image_and_label_together():
    scenes = Scenes(np.arange(12.0).reshape(2, 1, 2, 3), np.array([[[0, 1]], [[2, 3]]]))
    image, label = road_scenes.flipped(scenes, np.array([True, False]))
    assert label.tolist() == [[[1, 0]], [[2, 3]]]
    assert image[0, 0].tolist() == [[3, 4, 5], [0, 1, 2]] and (image[1] == scenes.image[1]).all()
