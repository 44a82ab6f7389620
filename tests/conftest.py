"""``async def`` tests run through trial: a dirty reactor or a lost Deferred error fails the test."""

from __future__ import annotations

import inspect
import os
import unittest as stdlib_unittest
from pathlib import Path
from typing import Any

import pytest
from twisted.trial import unittest

SHARED = Path(os.environ.get("WCFRELAY_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of specifications, vectors and third-party peers; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("the shared folder with vectors and third-party peers is not beside the checkout")
    return SHARED


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    marker = pyfuncitem.get_closest_marker("timeout_s")

    class Case(unittest.TestCase):
        timeout = marker.args[0] if marker else 20

        async def runTest(self) -> None:
            await pyfuncitem.obj(**arguments)

    class Result(stdlib_unittest.TestResult):
        problem: Any = None

        def addError(self, test: Any, err: Any) -> None:
            self.problem = self.problem or err

        addFailure = addError

        def addSkip(self, test: Any, reason: str) -> None:
            pytest.skip(str(reason))

    result = Result()
    Case("runTest").run(result)
    problem = result.problem
    if problem is None:
        return True
    if hasattr(problem, "value"):
        raise problem.value.with_traceback(problem.getTracebackObject())
    raise problem[1].with_traceback(problem[2])
