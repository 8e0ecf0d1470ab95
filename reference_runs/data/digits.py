"""Write the handwritten digits that scikit-learn carries as minimoe/data/digits.csv.

    pip install scikit-learn==1.9.1
    python -m reference_runs.data.digits

Order and values stay as scikit-learn gives them. A pixel is one character, its grey level from 0 to
16 counted 0 ... 9, a ... g, so that a line is a digit and its 64 pixels, row after row.
"""
from pathlib import Path

from sklearn.datasets import load_digits

LEVELS = "0123456789abcdefg"
FILE = Path(__file__).resolve().parents[2] / "minimoe" / "data" / "digits.csv"


if __name__ == "__main__":
    pixels, digits = load_digits(return_X_y=True)                # [N, 64], [N]
    lines = [f"{digit}," + "".join(LEVELS[int(level)] for level in image)
             for digit, image in zip(digits, pixels)]
    FILE.write_text("\n".join(["digit,pixels", *lines]) + "\n", "ascii", newline="\n")
    print(f"wrote {FILE.name}: {FILE.stat().st_size:,} bytes")
