"""Vowels and digits that are shipped, tasks made of them, names; text, chains and topics."""
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest

from minimoe.data import digits, language_names, markov_chains, peterson_barney, topics
from minimoe.data.python_text import python_text


@pytest.fixture(scope="module")
def data():
    return peterson_barney.measurements()


# means of F1 and F2 over each group, rounded, computed once from the CMU AI Repository's file
MEANS = {
    "m": {"iy": (267, 2294), "ih": (392, 1993), "aa": (718, 1091), "ah": (631, 1192)},
    "w": {"iy": (310, 2783), "ih": (441, 2474), "aa": (864, 1229), "ah": (758, 1409)},
    "c": {"iy": (360, 3178), "ih": (534, 2744), "aa": (1030, 1383), "ah": (855, 1592)},
}
# F1 to F3 of men as the 1952 paper prints them, every vowel
PRINTED = {
    "iy": (270, 2290, 3010), "ih": (390, 1990, 2550), "eh": (530, 1840, 2480),
    "ae": (660, 1720, 2410), "aa": (730, 1090, 2440), "ao": (570, 840, 2410),
    "uh": (440, 1020, 2240), "uw": (300, 870, 2240), "ah": (640, 1190, 2390),
    "er": (490, 1350, 1690),
}


def test_every_speaker_says_every_vowel_twice(data):
    tokens = list(zip(data.speaker.tolist(), data.vowel.tolist(), data.repetition.tolist()))
    assert set(tokens) == {(s, v, r) for s in range(1, 77) for v in PRINTED for r in (1, 2)}
    assert len(tokens) == 1520


def test_speakers_are_men_then_women_then_children(data):
    assert Counter(data.speaker_type.tolist()) == {"m": 660, "w": 560, "c": 300}
    for kind, speakers in {"m": (1, 33), "w": (34, 61), "c": (62, 76)}.items():
        of_kind = data.speaker[data.speaker_type == kind]
        assert (of_kind.min(), of_kind.max()) == speakers
    assert set(data.sex[data.speaker_type == "m"]) == {"m"}
    assert set(data.sex[data.speaker_type == "w"]) == {"f"}


def test_formants_lie_in_their_ranges(data):
    assert data.formants.min(axis=0).tolist() == [91, 190, 560, 1400]      # no NaN, no 0
    assert data.formants.max(axis=0).tolist() == [350, 1300, 3610, 4380]
    merged = data.formants[:, 1] == data.formants[:, 2]
    assert Counter(zip(data.speaker[merged].tolist(), data.vowel[merged].tolist())) == {
        (2, "ao"): 2, (72, "aa"): 1, (72, "ao"): 1, (74, "ao"): 1}


def test_means_are_those_of_another_copy_and_near_the_printed_ones(data):
    for kind, vowels in MEANS.items():
        for vowel, means in vowels.items():
            group = data.formants[(data.speaker_type == kind) & (data.vowel == vowel), 1:3]
            assert group.mean(axis=0).round().tolist() == list(means), (kind, vowel)
    for vowel, means in PRINTED.items():
        group = data.formants[(data.speaker_type == "m") & (data.vowel == vowel), 1:]
        np.testing.assert_allclose(group.mean(axis=0), means, rtol=0.027)


def test_the_task_keeps_two_pairs_of_vowels_and_splits_by_speaker(data):
    train, test = peterson_barney.two_pairs()
    assert train.x.shape == (400, 3) and test.x.shape == (200, 3)
    assert Counter(train.vowel.tolist()) == dict.fromkeys(("iy", "ih", "aa", "ah"), 100)
    for cases in (train, test):
        assert (cases.x[:, 2] == 1).all()
        assert (cases.d[:, 0] == np.isin(cases.vowel, ["iy", "aa"])).all()
    # the last training token is the 50th speaker's: aa, second time
    of_50 = (data.speaker == 50) & (data.vowel == "aa") & (data.repetition == 2)
    assert (train.x[-1] * 1000).tolist() == pytest.approx([*data.formants[of_50][0, 1:3], 1000])
    of_75 = (data.speaker == 75) & (data.vowel == "aa") & (data.repetition == 2)
    assert (test.x[-1] * 1000).tolist() == pytest.approx([*data.formants[of_75][0, 1:3], 1000])


# -- Markov chains -------------------------------------------------------------------------------

def test_tokens_follow_the_tables(rng):
    tables = markov_chains.chains(rng, n_languages=2, n_symbols=3)
    drawn = markov_chains.tokens(rng, tables, 60_000)
    counts = np.zeros((2, 3, 3))
    np.add.at(counts, drawn, 1)
    np.testing.assert_allclose(counts / counts.sum(axis=-1, keepdims=True), tables, atol=0.02)
    np.testing.assert_allclose(counts.sum(axis=-1) / 60_000, 1 / 6, atol=0.01)


def test_entropy_of_chains_by_hand():
    sure, fair = [1.0, 0.0], [0.5, 0.5]
    assert markov_chains.entropy(np.array([[sure, fair], [fair, fair]])) == pytest.approx(
        0.75 * np.log(2))


# -- Python's own text ---------------------------------------------------------------------------

def test_the_text_prints_and_has_no_double_space():
    symbols, train, test = python_text()
    text = "".join(symbols[i] for i in np.concatenate([train, test]))
    assert text.isprintable() and "  " not in text and "statement" in text
    assert len(train) == len(text) * 9 // 10 > 100_000
    assert list(symbols) == sorted(set(text))


# -- Topics --------------------------------------------------------------------------------------

def test_a_target_is_what_the_topic_makes_of_the_word_nine_times_in_ten(rng):
    meanings = topics.meanings(rng)
    assert (np.sort(meanings, axis=1) == np.arange(32)).all()
    assert len(set(map(tuple, meanings))) == 16
    topic, word, target = topics.examples(rng, meanings, 100_000)
    for values, n in [(topic, 16), (word, 32), (target, 32)]:
        np.testing.assert_allclose(np.bincount(values, minlength=n) * n / 100_000, 1, atol=0.07)
    meant = target == meanings[topic, word]
    assert meant.mean() == pytest.approx(0.9 + 0.1 / 32, abs=0.004)
    assert len(set(zip(topic, word))) == 16 * 32


def test_the_best_perplexity_of_topics_by_hand():
    # p = 0.903125 of one word and 0.003125 of 31: entropy 0.09203 + 31 * 0.003125 * 5.76832
    assert topics.best_perplexity() == pytest.approx(np.exp(0.09203 + 0.55881), rel=1e-4)


# -- Handwritten digits --------------------------------------------------------------------------

def test_the_digits_are_all_there():
    image, label = digits.digits()
    assert image.shape == (1797, 64) and image.min() == 0 and image.max() == 1
    assert np.bincount(label).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # the first of scikit-learn's, a zero: its first two rows, and the sum of all pixels of all
    assert (image[0, :16] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]
    assert (image * 16).sum() == 561718


def test_parts_of_shuffled_digits_are_disjoint_and_whole(rng):
    parts = digits.shuffled(rng, 1000, 300)
    assert [len(part.label) for part in parts] == [1000, 300, 497]
    whole = np.concatenate([np.column_stack([part.image, part.label]) for part in parts])
    expected = np.column_stack(digits.digits())
    assert sorted(map(tuple, whole)) == sorted(map(tuple, expected))
    with pytest.raises(ValueError, match=r"leave some of 1797 digits; got \(1000, 797\)"):
        digits.shuffled(rng, 1000, 797)


def test_a_pair_shares_its_digit_and_no_more(rng):
    data, _ = digits.shuffled(rng, 200)
    a, b, label = digits.pairs(rng, data, n_rounds=3)
    assert len(a) == 600
    of_image = {tuple(image): digit for image, digit in zip(data.image, data.label)}
    undone = digits.second_rendering(b)              # turning twice is not turning
    assert [of_image[tuple(image)] for image in a] == label.tolist()
    assert [of_image[tuple(image)] for image in undone] == label.tolist()
    assert (a == undone).all(axis=1).mean() < 0.15


def test_the_second_rendering_by_hand():
    image = np.zeros((1, 64))
    image[0, 1] = 0.25                               # row 0, column 1
    rendered = digits.second_rendering(image)
    assert rendered[0, 8] == 0.75 and rendered.sum() == 63.75


# -- Names of languages --------------------------------------------------------------------------

@pytest.fixture(scope="module")
def names():
    return language_names.language_names()


def test_names_are_short_and_spelled_unlike_english(names):
    known = {(language_names.LANGUAGES[i], source, target) for i, source, target in zip(*names)}
    assert known >= {("de", "irisch", "irish"), ("fr", "allemand", "german"),
                     ("ru", "немецкий", "german"), ("el", "ιρλανδικά", "irish")}
    assert len(known) == len(names.source) > 5000
    assert np.bincount(names.language).min() > 100 and names.language.max() == 25
    for source, target in zip(names.source, names.target):
        assert source != target and source == source.casefold()
        assert max(len(source), len(target)) <= 10 and unicodedata.is_normalized("NFC", source)


def test_a_spelling_held_out_is_never_trained_on_but_its_meaning_is(names, rng):
    train, test = language_names.split(rng, names)
    assert not set(train.source) & set(test.source)
    assert set(test.target) <= set(train.target)
    spellings = len(set(names.source))
    left = spellings - len(set(train.source))       # held out, and those known in no other spelling
    assert 0.08 * spellings < len(set(test.source)) <= left < 0.12 * spellings
    whole = set(zip(*names))
    assert set(zip(*train)) | set(zip(*test)) <= whole and len(train.source) > 0.85 * len(whole)


def test_indices_of_names_spell_them(names):
    known = language_names.symbols(names)
    words = language_names.encoded(names, known)
    assert words.source.max() < language_names.n_source(known) == 1 + 26 + len(known.source)
    assert words.target.max() < language_names.n_target(known) == 2 + len(known.target)
    assert [language_names.decoded(row, known) for row in words.target] == names.target
    assert (words.source[:, 0] == 1 + names.language).all()
    assert (words.source[:, 1:] > 0).sum(axis=1).tolist() == list(map(len, names.source))
    assert (words.source[:, 1:].max(axis=1) > 26).all()


def test_without_babel_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "babel", None)
    language_names._language_names.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'minimoe\[babel\]'$"):
        language_names.language_names()
