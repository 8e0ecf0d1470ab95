from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe.data.span_corruption import (
    Example, composition, corrupt, examples, lengths, n_noise_and_spans, noise_mask, reconstruct)


# -- By hand -------------------------------------------------------------------------------------

def test_the_length_of_t5():
    # round(85.2) = 85 tokens in round(28.33) = 28 spans; 568 - 85 + 28 + 1 and 85 + 28 + 1
    assert n_noise_and_spans(568) == (85, 28)
    assert lengths(568) == (512, 114)


@pytest.mark.parametrize("length, expected", [
    (2, (1, 1)),      # round(.3) = 0, but one goes
    (10, (2, 1)),     # round(1.5) = 2, half to even; round(.67) = 1
    (30, (4, 1)),     # round(4.5) = 4, half to even; round(1.33) = 1
    (50, (8, 3)),     # round(7.5) = 8, half to even; round(2.67) = 3
])
def test_counts_by_hand(length, expected):
    assert n_noise_and_spans(length) == expected


def test_a_text_by_hand():
    tokens = np.array([10, 11, 12, 13, 14, 15, 16])
    mask = np.array([False, True, True, False, False, True, True])
    source, target = corrupt(tokens, mask, vocabulary=100, n_sentinels=2)
    assert source.tolist() == [10, 99, 13, 14, 98, 1]
    assert target.tolist() == [99, 11, 12, 98, 15, 16, 1]


# -- Properties ----------------------------------------------------------------------------------

@given(st.integers(0, 2**32), st.integers(2, 200), st.data())
def test_a_corrupted_text_is_of_the_length_foretold_and_can_be_put_together_again(seed, L, data):
    rng = np.random.default_rng(seed)
    tokens = np.array(data.draw(st.lists(st.integers(0, 30), min_size=L, max_size=L)))
    mask = noise_mask(rng, L)
    example = corrupt(tokens, mask, vocabulary=42, n_sentinels=11)
    assert mask.sum() == n_noise_and_spans(L)[0]
    assert tuple(map(len, example)) == lengths(L)
    assert reconstruct(example, vocabulary=42, n_sentinels=11).tolist() == tokens.tolist()


def test_every_composition_is_as_likely(rng):
    # of 6 into 3 parts there are (5 choose 2) = 10: 2000 draws, each some 200 +- 13.4
    found = Counter(tuple(composition(rng, 6, 3).tolist()) for _ in range(2000))
    assert len(found) == 10
    assert all(min(parts) > 0 and sum(parts) == 6 for parts in found)
    assert all(abs(n - 200) < 4 * 13.4 for n in found.values())


def test_examples_are_stretches_of_the_text(rng):
    text = np.arange(2, 502)
    batch = examples(rng, text, n_examples=3, length=50, vocabulary=520, n_sentinels=10)
    assert batch.source.shape == (3, 46) and batch.target.shape == (3, 12)
    for source, target in zip(*batch):
        tokens = reconstruct(Example(source, target), vocabulary=520, n_sentinels=10)
        assert (np.diff(tokens) == 1).all() and len(tokens) == 50


# -- Bad input -----------------------------------------------------------------------------------

def test_bad_input_is_refused(rng):
    tokens, mask = np.array([5, 6, 7]), np.array([False, True, True])
    with pytest.raises(ValueError, match="needs 2 tokens or more; got 1"):
        noise_mask(rng, 1)
    with pytest.raises(ValueError, match="9 of 10 tokens cannot go in 3 spans"):
        noise_mask(rng, 10, density=0.9)
    with pytest.raises(ValueError, match="the first token must stay and the last one go"):
        corrupt(tokens, ~mask, 20, 5)
    with pytest.raises(ValueError, match="the last 5 of 12 are sentinels; got 1 spans, and a text "
                                         "with 7"):
        corrupt(tokens, mask, 12, 5)
    with pytest.raises(ValueError, match="got 1 spans"):
        corrupt(tokens, mask, 12, 0)
    with pytest.raises(ValueError, match="needs a text of 4 or more; got 3"):
        examples(rng, tokens, 1, 4, 20)
    source, target = corrupt(tokens, mask, 20, 5)
    with pytest.raises(ValueError, match="source and target have other sentinels"):
        reconstruct(Example(source, target[1:]), 20, 5)
    with pytest.raises(ValueError, match="source and target have other sentinels"):
        reconstruct(Example(source, np.where(target == 19, 18, target)), 20, 5)
