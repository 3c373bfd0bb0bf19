"""What all tests share: a Chromium, where one is at hand."""

from browser import browser  # noqa: F401  (a fixture)
