"""Formants of American English vowels: the measurements of Peterson and Barney.

G. E. Peterson and H. L. Barney, "Control Methods Used in a Study of the Vowels", Journal of the
Acoustical Society of America 24(2):175-184, 1952.

76 speakers (33 men, 28 women, 15 children) said ten words, h-vowel-d, twice each: 1,520 rows of the
fundamental frequency and the first three formants, in hertz. The file beside this one is Praat's
built-in table, written by ``reference_runs/data/peterson_barney.py``. All values agree with the
file of the CMU AI Repository (``verified_pb.data``), which alone says which tokens the listeners
did not all recognise.

    label   iy    ih   eh    ae   ah   aa   ao     uh    uw     er
    word    heed  hid  head  had  hud  hod  hawed  hood  who'd  heard

Beware: ah is *hud* and aa is *hod*.
"""
import csv
from importlib import resources
from typing import NamedTuple

import numpy as np

TRAINING_SPEAKERS = 50
SPEAKERS = 75


class Measurements(NamedTuple):
    """In the order of the file: by speaker, then by vowel, then by repetition."""
    speaker_type: np.ndarray   # [N] str    m, w or c: man, woman, child
    sex: np.ndarray            # [N] str    m or f
    speaker: np.ndarray        # [N] int    1 to 76: men, women, children
    vowel: np.ndarray          # [N] str
    repetition: np.ndarray     # [N] int    1 or 2; the file has no column for it
    formants: np.ndarray       # [N, 4]     F0, F1, F2, F3 in hertz


class Cases(NamedTuple):
    x: np.ndarray              # [N, 3]     F1 and F2 in kilohertz, and the constant 1
    d: np.ndarray              # [N, 1]     1 for iy and aa, 0 for ih and ah
    vowel: np.ndarray          # [N] str


def measurements():
    """All 1,520 rows."""
    text = resources.files("minimoe.data").joinpath("peterson_barney.csv").read_text("ascii")
    rows = list(csv.DictReader(text.splitlines()))

    def column(name, dtype):
        return np.array([row[name] for row in rows], dtype)

    seen, repetition = set(), []
    for row in rows:
        token = row["speaker"], row["vowel"]
        repetition.append(2 if token in seen else 1)
        seen.add(token)
    return Measurements(column("type", str), column("sex", str), column("speaker", int),
                        column("vowel", str), np.array(repetition),
                        np.stack([column(f, float) for f in ("F0", "F1", "F2", "F3")], axis=1))


def two_pairs():
    """The task of Jacobs et al. (1991), Section 3: training cases, test cases.

    Two pairs of overlapping vowels, iy with ih and aa with ah, told apart by F1 and F2: one line
    solves each pair, no single line solves both. Speakers 1 to 50 train, 51 to 75 test: the paper
    has 75 speakers and does not say who is missing; here it is the last one. Nor does it give its
    targets: here one for each case, which of its pair the vowel is.
    """
    data = measurements()
    wanted = np.isin(data.vowel, ["iy", "ih", "aa", "ah"])

    def cases(chosen):
        F1_F2 = data.formants[chosen, 1:3] / 1000                          # [N, 2]
        x = np.concatenate([F1_F2, np.ones((len(F1_F2), 1))], axis=1)      # [N, 3]
        first_of_pair = np.isin(data.vowel[chosen], ["iy", "aa"])
        return Cases(x, first_of_pair[:, None].astype(float), data.vowel[chosen])

    trains = data.speaker <= TRAINING_SPEAKERS
    return cases(wanted & trains), cases(wanted & ~trains & (data.speaker <= SPEAKERS))
