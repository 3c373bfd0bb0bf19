"""What all tests share: a Chromium, where one is at hand; and which of the light ones `make check` leaves out."""

import pytest

from browser import browser  # noqa: F401  (a fixture)

# Files of tests/light that take longest: studies planned and judged, sweeps of processes, pages in a browser, every command of the docs.
SLOW = {
    "test_coverage.py",
    "test_docs.py",
    "test_fit.py",
    "test_own_parts.py",
    "test_own_plan.py",
    "test_page.py",
    "test_readme.py",
    "test_report_browser.py",
    "test_report_page.py",
    "test_study_laws.py",
    "test_sweep.py",
    "test_validate.py",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
