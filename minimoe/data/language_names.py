"""Names of languages in 26 languages and in English: words to translate.

They are those of the Unicode Common Locale Data Repository (CLDR) as Babel has them, read from that
package when asked for and never copied. They differ between versions of Babel, so what is measured
on them may be compared only within one.

A pair is what one language calls a language and what English calls it, such as German "irisch" and
"irish": in lower case, characters composed (NFC), no longer than 10 of them. Where both are spelled
alike there is nothing to translate, and no pair.

    N pairs    S, R positions: source, target
"""
import unicodedata
from functools import cache
from typing import NamedTuple

import numpy as np

LANGUAGES = ("de", "fr", "es", "it", "pt", "nl", "sv", "fi", "pl", "cs", "hu", "ro", "tr", "lt",
             "lv", "et", "sq", "cy", "ga", "is", "ru", "uk", "bg", "el", "ka", "hy")
LONGEST = 10           # characters
PADDING, END = 0, 1    # indices that are no character's


class Pairs(NamedTuple):
    language: np.ndarray   # [N] int     index into LANGUAGES
    source: list           # of N str
    target: list           # of N str, English


class Words(NamedTuple):
    """Pairs as indices, rows filled up with ``PADDING``."""
    source: np.ndarray     # [N, S] int   the language, then its characters
    target: np.ndarray     # [N, R] int   characters, then END


class Symbols(NamedTuple):
    """What indices stand for: a source's after those of the languages, a target's after END."""
    source: str
    target: str


def language_names():
    """All pairs, by language. ModuleNotFoundError where Babel is not installed."""
    try:
        return _language_names()
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the names of languages are Babel's, which is not installed: "
                                  "pip install 'minimoe[babel]'") from None


@cache
def _language_names():
    from babel import Locale
    english = Locale("en").languages
    found = []
    for i, language in enumerate(LANGUAGES):
        names = Locale(language).languages
        for code in sorted(names.keys() & english.keys()):
            source, target = _plain(names[code]), _plain(english[code])
            if "_" not in code and source != target and max(len(source), len(target)) <= LONGEST:
                found.append((i, source, target))
    language, source, target = zip(*found)
    return Pairs(np.array(language), list(source), list(target))


def _plain(name):
    return unicodedata.normalize("NFC", name.casefold())


def split(rng, pairs, held_out=0.1):
    """Pairs to train on and to test on, by spelling. -> Pairs, Pairs

    Of all source spellings one in ten is held out, in whichever languages share it, and so is never
    trained on; what it means in English is, spelled otherwise in other languages. Pairs whose
    English name is not trained on at all are in neither.
    """
    spellings = sorted(set(pairs.source))
    chosen = {spelling for spelling, u in zip(spellings, rng.random(len(spellings)))
              if u < held_out}
    held = np.array([source in chosen for source in pairs.source])
    train = _take(pairs, ~held)
    known = set(train.target)
    return train, _take(pairs, held & np.array([target in known for target in pairs.target]))


def _take(pairs, mask):
    places = np.flatnonzero(mask)
    return Pairs(pairs.language[places], [pairs.source[i] for i in places],
                 [pairs.target[i] for i in places])


def symbols(pairs):
    """Every character that occurs, in order."""
    return Symbols(*("".join(sorted(set("".join(words)))) for words in pairs[1:]))


def n_source(known):
    """How many indices a source may have."""
    return 1 + len(LANGUAGES) + len(known.source)


def n_target(known):
    return 2 + len(known.target)


def encoded(pairs, known):
    """Pairs, Symbols -> Words, S = LONGEST + 1 = R"""
    source = np.full((len(pairs.source), LONGEST + 1), PADDING)
    target = np.full((len(pairs.target), LONGEST + 1), PADDING)
    of_source = {c: i + 1 + len(LANGUAGES) for i, c in enumerate(known.source)}
    of_target = {c: i + 2 for i, c in enumerate(known.target)}
    source[:, 0] = 1 + pairs.language
    for row, word in zip(source, pairs.source):
        row[1:len(word) + 1] = [of_source[c] for c in word]
    for row, word in zip(target, pairs.target):
        row[:len(word) + 1] = [*(of_target[c] for c in word), END]
    return Words(source, target)


def decoded(target, known):
    """What a row of indices says, up to END. [R] int -> str"""
    row = target.tolist()
    row = row[:row.index(END)] if END in row else row
    return "".join(known.target[i - 2] if i >= 2 else "?" for i in row)
