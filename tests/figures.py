"""What every operation was measured to reach.

    python -m tests.figures

Four columns: the vjp against its derivative by complex step ("cast": the two operations that round
pass the cotangent on by definition); value and gradient against recorded PyTorch, relative to the
scale of the tensor; and the value against 50 digits, in units of 2^-52 (see ``tests.ops.exact``).
"""
import numpy as np

from tests.ops import exact, table
from tests.ops.test_ops import EVERY


def here(x):
    """Arrays stay where they are: on NumPy."""
    return x


def main():
    print(f"{'operation':18s} {'vjp':>9s} {'value':>9s} {'gradient':>9s} {'units':>6s}")
    worst = np.zeros(4)
    for name in EVERY:
        figures = [0.0, *table.distance_from_pytorch(name, here), 0.0]
        if name not in table.CAST:
            figures[0] = table.vjp_error(name, here, np.random.default_rng(0))
        if name in exact.FUNCTIONS:
            figures[3] = exact.units(name, here)[0]
        elif name in exact.ROWS:
            figures[3] = exact.units_of_row(name, here)
        worst = np.maximum(worst, figures)
        print(_line(name, figures, units=name in (*exact.FUNCTIONS, *exact.ROWS)))
    print(_line("worst", worst, units=True))


def _line(name, figures, units):
    vjp = "cast" if name in table.CAST else f"{figures[0]:.1e}"
    return (f"{name:18s} {vjp:>9s} {figures[1]:9.1e} {figures[2]:9.1e} "
            f"{f'{figures[3]:.2f}' if units else '':>6s}")


if __name__ == "__main__":
    main()
