"""Generates charts/nativelink, the Helm chart, from what renders the trees: `python -m chart`.

There is one source. The templates of role nativelink become Go templates (jinja.py), and so do the functions that
compute their context and the rules of preflight (python.py, functions.py). The roles' variables become values
(values.py) and their schema (schema.py). What Go needs besides, and what only a chart has, is in static/, written by
hand and copied.
"""

from .files import FOLDER, files

__all__ = ["FOLDER", "files"]
