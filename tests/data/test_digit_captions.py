"""Digits with captions: what a caption says is so, and nothing of the test images is used."""
import numpy as np
import pytest

from minimoe.data import digit_captions
from minimoe.data.digit_captions import FIRST, SIDE, VOCABULARY


@pytest.fixture(scope="module")
def parts():
    return digit_captions.captioned(np.random.default_rng(1234))


def image_of(*pixels):
    """One image, black at these rows and columns."""
    image = np.zeros((1, SIDE, SIDE))
    image[(0, *np.transpose(pixels))] = 1
    return image.reshape(1, -1)


@pytest.mark.parametrize("pixels, ink, slant", [
    ([(1, 3), (3, 3), (5, 3)], 3, 0),               # a column
    ([(4, 2), (3, 3), (2, 4)], 3, 1),               # up by one is right by one: /
    ([(2, 2), (3, 3), (4, 4), (5, 5)], 4, -1),      # \
    ([(6, 2), (4, 3), (2, 4)], 3, 0.5),
    ([(4, 1), (4, 6)], 2, 0)])                      # a row has no height to lean by
def test_attributes_by_hand(pixels, ink, slant):
    found = digit_captions.attributes(image_of(*pixels))
    assert [float(values[0]) for values in found] == pytest.approx([ink, slant])


def test_an_image_without_ink_is_refused():
    with pytest.raises(ValueError, match="attributes: an image without ink"):
        digit_captions.attributes(np.zeros((2, 64)))


def test_a_caption_names_what_the_image_has(parts):
    train, test = parts
    assert [len(part.label) for part in parts] == [1437, 360]
    words = digit_captions.captions(np.random.default_rng(0), test)
    assert (words >= FIRST).all() and (words < [*FIRST[1:], len(VOCABULARY)]).all()
    assert (words[:, 2] - FIRST[2] == test.label).all()
    assert digit_captions.spelled(words[0]).split()[2] == digit_captions.DIGITS[test.label[0]]
    ink, slant = digit_captions.attributes(test.image)
    for values, bucket in ((ink, test.ink), (slant, test.slant)):
        assert values[bucket == 0].max() < values[bucket == 1].min()
        assert values[bucket == 1].max() < values[bucket == 2].min()
    assert sorted(set(words[:, 0])) == [0, 1, 2, 3]


def test_buckets_are_thirds_of_the_training_images_alone(parts):
    train, test = parts
    for bucket in (train.ink, train.slant):
        assert np.bincount(bucket) / len(bucket) == pytest.approx([1 / 3] * 3, abs=0.01)
    ink, _ = digit_captions.attributes(train.image)
    of_test, _ = digit_captions.attributes(test.image)
    cut = np.quantile(ink, 2 / 3)
    assert ((of_test >= cut) == (test.ink == 2)).all()


def test_all_captions_of_a_digit():
    seven = digit_captions.captions_of(7)
    assert seven.shape == (36, 4) and len(set(map(tuple, seven))) == 36
    assert {digit_captions.spelled(c).split()[2] for c in seven} == {"seven"}


def test_patches_by_hand():
    image = np.arange(64.0).reshape(1, 64)
    cut = digit_captions.patches(image)
    assert cut.shape == (1, 16, 4)
    assert cut[0, 0].tolist() == [0, 1, 8, 9] and cut[0, 5].tolist() == [18, 19, 26, 27]
    tall = digit_captions.patches(image, height=2, width=1)
    assert tall.shape == (1, 32, 2) and tall[0, 9].tolist() == [17, 25]


def test_standardised_by_the_training_images():
    train, test = digit_captions.standardised(np.array([1.0, 3.0]), np.array([5.0]))
    assert train.tolist() == [-1, 1] and test.tolist() == [3]
