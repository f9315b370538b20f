"""The cases of tests/preflight/reject, run by Molecule."""

from tests.preflight.test_reject import *  # noqa: F403 (tests and their fixtures, collected here)
