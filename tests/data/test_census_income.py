"""The loader of UCI's Census-Income file: rows made up as UCI lays them out, and the file itself.

The file is not shipped: MINIMOE_CENSUS names it, or it lies in ``shared/data`` beside the checkout.
"""
import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from minimoe.data import census_income
from minimoe.data.census_income import COLLEGE, FIELDS, LEFT_OUT, NOMINAL, NUMERIC

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data" / "census-income.test.gz"
FILE = Path(os.environ.get("MINIMOE_CENSUS", BESIDE))


def line(income="- 50000.", **fields):
    """A row, its fields 0 or ``?`` where they are not given by their first words."""
    values = dict.fromkeys(FIELDS, "?") | dict.fromkeys(NUMERIC, "0") | {
        field: str(fields[field.split()[0]]) for field in FIELDS if field.split()[0] in fields}
    return ", ".join([*values.values(), income]) + "\n"


@pytest.fixture
def read(tmp_path):
    def read(*lines, pack=False):
        data = "".join(lines).encode("utf-8")
        path = tmp_path / "census"
        path.write_bytes(gzip.compress(data) if pack else data)
        return census_income.read(path)
    return read


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gzip"])
def test_rows_as_uci_lays_them_out(read, pack):
    rows = read(line(age=38, sex="Female", education=COLLEGE[0], marital="Never married"),
                line("50000+.", age=70, sex="Male", weeks=52, marital="Widowed"),
                line(age=2, sex="Female", education="Some college but no degree"), "\n", pack=pack)
    assert rows.numeric[:, 0].tolist() == [38, 70, 2] and rows.numeric[1, -1] == 52
    sex = NOMINAL.index("sex")
    assert rows.levels[sex] == ("Female", "Male") and rows.nominal[:, sex].tolist() == [0, 1, 0]
    assert rows.income.tolist() == [False, True, False]
    assert rows.education.tolist() == [True, False, False]
    assert rows.never_married.tolist() == [True, False, False]


def test_no_label_and_no_weight_is_among_the_inputs():
    assert len(FIELDS) == 41 and len(NUMERIC) == 7 and len(NOMINAL) == 31
    assert set(NUMERIC) | set(NOMINAL) | set(LEFT_OUT) == set(FIELDS)
    assert {"education", "marital status"} < set(LEFT_OUT)


@pytest.mark.parametrize("lines, said", [
    ([], "the file has no rows"),
    (["\n"], "the file has no rows"),
    ([line(), "1, 2, 3\n"], "line 2 needs 42 fields with commas between them; got 3"),
    ([line(), line(), line("50,000")], "line 3 needs 42 fields .* got 43"),
    ([line("50000")], "line 1 must end in - 50000. or 50000[+].; got '50000'"),
    ([line(age="old")], "age must be a number in every row"),
    ([line(sex="f\u00e9minin")], "needs a text file"),
])
def test_another_file_is_refused(read, lines, said):
    with pytest.raises(ValueError, match=f"census_income: {said}"):
        read(*lines)


def test_a_damaged_or_a_missing_file(tmp_path):
    path = tmp_path / "census.gz"
    whole = gzip.compress(line().encode() * 100)
    for damaged in (whole[:-9], whole[:20] + b"\0" * 30 + whole[50:], whole[:3]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="the gzip file is truncated or damaged"):
            census_income.read(path)
    with pytest.raises(FileNotFoundError):
        census_income.read(tmp_path / "nothing")


@pytest.mark.skipif(not FILE.exists(), reason="MINIMOE_CENSUS names no copy of UCI's file")
def test_the_file_itself():
    """Label correlations as the paper has them, 0.1768 and 0.2373, but for the sign."""
    rows = census_income.read(FILE)
    N, = rows.income.shape
    assert N in (99_762, 199_523) and rows.numeric.shape == (N, 7)
    assert np.isfinite(rows.numeric).all() and rows.numeric.min() == 0
    assert [len(levels) for levels in rows.levels] == (rows.nominal.max(axis=0) + 1).tolist()
    with_income, with_education = (np.corrcoef(label, rows.never_married)[0, 1]
                                   for label in (rows.income, rows.education))
    assert (with_income, with_education) == pytest.approx((-.1768, -.2373), abs=.005)
    if N == 99_762:
        # as counted in the file by other means
        assert (rows.income.sum(), rows.never_married.sum()) == (6_186, 43_143)
        assert rows.education.sum() == 2_079 + 2_690 + 9_885 + 620 + 3_306 + 876
