"""A plugin of pytest: a test of yours, once for each case of a paper.

    @pytest.mark.minimoe("switch_2021/*", tags="drops")
    def test_my_layer(moe_case):
        moe_case.check(my_layer, adapter="torch", gradients=True)

It is loaded in every test run where minimoe is installed, so nothing that is heavy is imported
before a test asks for it.
"""
import fnmatch
from typing import NamedTuple

import pytest

DTYPES = ("float64", "float32", "float16", "bfloat16")


def pytest_addoption(parser):
    group = parser.getgroup("minimoe")
    group.addoption("--minimoe-dtype", choices=DTYPES, default="float64",
                    help="what cases are given in (default float64)")
    group.addoption("--minimoe-xfails", metavar="FILE",
                    help="cases that are known to fail: an id or a pattern a line, # before the "
                         "reason; one that passes is a failure")


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "minimoe(pattern, tags=''): once for each case of a paper that fits, given to "
                   "the test as moe_case")
    path = config.getoption("--minimoe-xfails")
    if path:
        try:
            with open(path, encoding="utf-8") as file:
                config.minimoe_xfails = dict(_expected(file))
        except OSError as error:
            raise pytest.UsageError(f"--minimoe-xfails {path}: {error.strerror}")


def _expected(lines):
    """Pattern and reason of each line that has one."""
    for line in lines:
        pattern, _, reason = line.partition("#")
        if pattern.strip():
            yield pattern.strip(), reason.strip()


def pytest_generate_tests(metafunc):
    mark = metafunc.definition.get_closest_marker("minimoe")
    if mark is None or "moe_case" not in metafunc.fixturenames:
        return
    from minimoe.oracle.cases import cases
    try:
        found = [case for pattern in mark.args or ("",) for case in cases(pattern, **mark.kwargs)]
    except (LookupError, TypeError) as error:
        raise pytest.UsageError(f"minimoe({', '.join(map(repr, mark.args))}): {error}")
    parametrize(metafunc, found)


def parametrize(metafunc, found):
    """Run a test once for each of these cases, some of them expected to fail."""
    xfails = getattr(metafunc.config, "minimoe_xfails", {})
    metafunc.parametrize("moe_case", [pytest.param(
        case, id=case.id, marks=[pytest.mark.xfail(reason=reason, strict=True)
                                 for pattern, reason in xfails.items()
                                 if fnmatch.fnmatchcase(case.id, pattern)])
        for case in found], indirect=True)


class MoeCase(NamedTuple):
    """A case, and the dtype that was asked for."""
    case: object      # minimoe.oracle.Case
    dtype: str

    @property
    def id(self):
        return self.case.id

    def report(self, fn, adapter="numpy", gradients=False):
        """What ``minimoe.oracle.check`` says of a function. -> Report"""
        from minimoe.oracle.check import check
        return check(fn, self.case, adapter, self.dtype, gradients)

    def check(self, fn, adapter="numpy", gradients=False):
        """Fail, saying where, if a function parts from the paper. -> Report"""
        __tracebackhide__ = True
        report = self.report(fn, adapter, gradients)
        if not report.ok:
            pytest.fail(str(report), pytrace=False)
        return report


@pytest.fixture
def moe_case(request):
    """The case of this test, a ``MoeCase``."""
    if not hasattr(request, "param"):
        pytest.fail("moe_case: mark the test with @pytest.mark.minimoe(PATTERN)", pytrace=False)
    return MoeCase(request.param, request.config.getoption("--minimoe-dtype"))
