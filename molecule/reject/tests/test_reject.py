"""The cases of tests/preflight/reject, in Molecule: see there."""

from tests.preflight.test_reject import *  # noqa: F403 (tests and their fixtures, collected here)
