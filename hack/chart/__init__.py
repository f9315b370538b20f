"""Generates charts/nativelink, the Helm chart, from what renders the trees. `make generate` does it.

The templates of role nativelink become Go templates (jinja.py), the roles' variables become values (values.py) and
their schema (schema.py), and numbers, names and alerts are copied as data (constants.py, monitoring.yml of the role).
What is computed of the values is written by hand in static/, under the names of the plugins' context, which computes
the same for the trees. tests/chart/test_parity.py compares the objects of both.
"""

from .files import FOLDER, files, write

__all__ = ["FOLDER", "files", "write"]
