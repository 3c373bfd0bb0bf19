"""tests/gpu by pytest: the CPU's text in float32 for every kind of drafter, and captured passes that change nothing."""

from pathlib import Path

from bench import Step

TESTS = Path(__file__).parents[2] / "tests" / "gpu"


class Outcomes:
    """Counts what pytest reports."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report: object) -> None:
        outcome, when, name = (getattr(report, field) for field in ("outcome", "when", "nodeid"))
        if when == "call" or outcome != "passed":
            self.counts[outcome] = self.counts.get(outcome, 0) + 1
        if outcome == "failed":
            self.failures.append(name)


def run(step: Step) -> None:
    """Raises ValueError where pytest is missing or a test fails."""
    try:
        import pytest
    except ImportError:
        raise ValueError("pytest is missing: put it beside with --site") from None
    outcomes = Outcomes()
    code = pytest.main(
        ["-q", "-p", "no:cacheprovider", "--rootdir", str(TESTS.parents[1]), str(TESTS)], plugins=[outcomes]
    )
    step.record("tests", outcomes.counts | {"failures": outcomes.failures})
    if code != 0:
        raise ValueError(f"tests/gpu: pytest ended with {int(code)}; the log has the failure")
