"""Write the chart: `python -m hack.chart`. `make generate` does it too."""

import sys

from hack.chart.files import FOLDER, files, write
from hack.chart.jinja import Untranslatable

try:
    write(FOLDER, files())
except Untranslatable as error:
    sys.exit(str(error))
