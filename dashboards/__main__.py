"""Write the dashboards: `python -m dashboards`. `make generate` does it too."""

from dashboards import FOLDER, files

FOLDER.mkdir(exist_ok=True)
wanted = files()
for path in set(FOLDER.glob("*.json")) - set(wanted):
    path.unlink()
for path, text in wanted.items():
    path.write_text(text)
