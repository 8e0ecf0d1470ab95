"""Hold any implementation to the papers: ``check`` a function, ``compare`` arrays."""
from minimoe.oracle.cases import Case, UnknownCase, case, cases
from minimoe.oracle.check import check
from minimoe.oracle.invariants import Invariant, invariants
from minimoe.oracle.report import Finding, Report, compare
from minimoe.oracle.trace import trace

__all__ = ["Case", "Finding", "Invariant", "Report", "UnknownCase", "case", "cases", "check",
           "compare", "invariants", "trace"]
