"""Write the chart: `python -m chart`. `make generate` does it too."""

import sys

from chart.files import FOLDER, files, write
from chart.jinja import Untranslatable

try:
    write(FOLDER, files())
except Untranslatable as error:
    sys.exit(str(error))
