"""Census-Income (KDD): what 299,285 Americans were asked in 1994 and 1995, and three labels of it.

Donated by T. Lane and R. Kohavi, from the U.S. Census Bureau's Current Population Surveys; UCI
Machine Learning Repository, 2000. It is not shipped here: ``read`` takes either of UCI's two files,
``census-income.data`` (199,523 rows) or ``census-income.test`` (99,762), plain or gzip. A row is 41
fields and the income's label, with a comma and a space between them; there is no header.

The labels are those of J. Ma et al., KDD 2018, Section 6.3. "At least college" is an associate's
degree or a higher one, under which rule the labels correlate as that paper says.
"""
import csv
import gzip
import zlib
from typing import NamedTuple

import numpy as np

FIELDS = (
    "age", "class of worker", "industry code", "occupation code", "education", "wage per hour",
    "enrolled last week", "marital status", "major industry", "major occupation", "race",
    "hispanic origin", "sex", "union member", "reason for unemployment", "employment status",
    "capital gains", "capital losses", "dividends", "tax filer status",
    "region of residence before", "state of residence before", "household and family status",
    "household summary",
    "instance weight", "migration between areas", "migration between regions",
    "migration within region", "same house a year ago", "migration from sunbelt",
    "persons worked for employer", "family members under 18", "father's country of birth",
    "mother's country of birth", "country of birth", "citizenship", "own business",
    "questionnaire of veterans' administration", "veterans' benefits", "weeks worked", "year")
NUMERIC = ("age", "wage per hour", "capital gains", "capital losses", "dividends",
           "persons worked for employer", "weeks worked")
LEFT_OUT = ("education", "marital status", "instance weight")   # two labels; the survey's weight
NOMINAL = tuple(field for field in FIELDS if field not in NUMERIC + LEFT_OUT)
INCOME = {"- 50000.": False, "50000+.": True}
COLLEGE = ("Associates degree-occup /vocational", "Associates degree-academic program",
           "Bachelors degree(BA AB BS)", "Masters degree(MA MS MEng MEd MSW MBA)",
           "Prof school degree (MD DDS DVM LLB JD)", "Doctorate degree(PhD EdD)")


class CensusIncome(NamedTuple):
    """Rows in the order of the file."""
    numeric: np.ndarray         # [N, 7]         in the order of NUMERIC
    nominal: np.ndarray         # [N, 31] int    for each field of NOMINAL, a place in its levels
    levels: tuple               # of tuples of str: what each field takes on in this file, sorted
    income: np.ndarray          # [N] bool       above 50,000 dollars
    education: np.ndarray       # [N] bool       at least college
    never_married: np.ndarray   # [N] bool


def read(path):
    """All rows of a file. OSError where it cannot be opened; ValueError, with the line, where it
    is not as UCI lays it out.
    """
    with open(path, "rb") as file:
        data = file.read()
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            raise ValueError("census_income: the gzip file is truncated or damaged") from None
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise ValueError("census_income: needs a text file, plain or gzip") from None
    rows = csv.reader(lines, quoting=csv.QUOTE_NONE, skipinitialspace=True)
    rows = [_checked(number, row) for number, row in enumerate(rows, 1) if row]
    if not rows:
        raise ValueError("census_income: the file has no rows")
    columns = dict(zip((*FIELDS, "income"), zip(*rows)))
    return CensusIncome(
        np.stack([_numbers(field, columns[field]) for field in NUMERIC], axis=1),
        *_codes([columns[field] for field in NOMINAL]),
        np.array([INCOME[label] for label in columns["income"]]),
        np.isin(columns["education"], COLLEGE),
        np.array([status == "Never married" for status in columns["marital status"]]))


def _checked(number, row):
    if len(row) != len(FIELDS) + 1:
        raise ValueError(f"census_income: line {number} needs {len(FIELDS) + 1} fields with commas "
                         f"between them; got {len(row)}")
    if row[-1] not in INCOME:
        raise ValueError(f"census_income: line {number} must end in {' or '.join(INCOME)}; "
                         f"got {row[-1][:20]!r}")
    return row


def _numbers(field, column):
    try:
        return np.array(column, float)
    except ValueError:
        raise ValueError(f"census_income: {field} must be a number in every row") from None


def _codes(columns):
    """[N, fields] int, and the levels of each field."""
    levels = tuple(tuple(sorted(set(column))) for column in columns)
    places = [{level: i for i, level in enumerate(names)} for names in levels]
    return np.array([[place[value] for value in column] for place, column in zip(places, columns)],
                    np.int16).T, levels
