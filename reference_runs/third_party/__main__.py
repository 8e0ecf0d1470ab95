"""Hold packages that are installed here to the papers, and print the table of what was found.

    python -m reference_runs.third_party transformers deepspeed ...
    python -m reference_runs.third_party --table

Each name is an adapter in this folder. One environment has one version of a package: what other
versions gave stays in the record. ``switch_transformers_4_44.npz`` is what the README's function
returns of the case ``switch_2021/overflowing``.
"""
import argparse
import importlib

from reference_runs.third_party import holding


def main():
    parser = argparse.ArgumentParser(prog="python -m reference_runs.third_party",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("adapters", nargs="*", metavar="ADAPTER")
    parser.add_argument("--table", action="store_true", help="print the record as Markdown")
    given = parser.parse_args()
    for name in given.adapters:
        module = importlib.import_module(f"reference_runs.third_party.{name}")
        entries = [holding.held(check) for check in module.checks()]
        holding.write(entries)
        print(holding.table(entries), end="")
    if given.table:
        print(holding.table(holding.read()), end="")


if __name__ == "__main__":
    main()
