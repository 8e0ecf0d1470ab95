"""The verb ``vectors``."""
import json
import sys
from pathlib import Path

from minimoe.oracle import vectors as oracle_vectors
from minimoe.oracle.vectors import FORMATS, MANIFEST, VectorsError


def add_arguments(parser):
    parser.add_argument("keys", metavar="KEY", nargs="*",
                        help="papers, or cases of them: gshard/all_* (default: every paper)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="a directory that is new or empty, or holds the same export")
    parser.add_argument("--format", choices=FORMATS, default="json",
                        help="of each case's file (default json)")


def vectors(args):
    """write test vectors for other languages: a manifest, and a file of each case

    A file has what goes into a case and every intermediate; the manifest how near to these a
    candidate's must be, and where they come from.
    """
    from tqdm import tqdm

    def track(cases):
        return tqdm(cases, unit="case", leave=False, disable=None, file=sys.stderr)

    try:
        manifest = oracle_vectors.vectors(args.keys, args.out, args.format, track)
    except OSError as error:
        raise VectorsError(f"--out {args.out}: {error.strerror}") from None
    n = len(manifest["cases"])
    if args.json:
        print(json.dumps({"manifest": str(args.out / MANIFEST), "format": args.format, "cases": n}))
    else:
        print(f"{n} {'cases' if n > 1 else 'case'} of {', '.join(manifest['papers'])}, as "
              f"{args.format}\nmanifest: {args.out / MANIFEST}")
    return 0
