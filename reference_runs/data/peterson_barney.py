"""Write the vowel measurements of Peterson and Barney (1952) as minimoe/data/peterson_barney.csv.

    pip install praat-parselmouth==0.4.7
    python -m reference_runs.data.peterson_barney

Praat has the table built in; it is asked for by its menu command. Columns, order and values stay as
Praat gives them, but for the column IPA, a second name of the vowel in Praat's own notation.
"""
import csv
from pathlib import Path

from parselmouth.praat import call

COLUMNS = ("Type", "Sex", "Speaker", "Vowel", "F0", "F1", "F2", "F3")
FILE = Path(__file__).resolve().parents[2] / "minimoe" / "data" / "peterson_barney.csv"


def rows():
    """Every row of Praat's table, in its order, as strings."""
    table = call("Create formant table (Peterson & Barney 1952)")
    return [[call(table, "Get value", row, column) for column in COLUMNS]
            for row in range(1, call(table, "Get number of rows") + 1)]


if __name__ == "__main__":
    with FILE.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([name.lower() if name[0] != "F" else name for name in COLUMNS])
        writer.writerows(rows())
    print(f"wrote {FILE.name}: {FILE.stat().st_size:,} bytes")
