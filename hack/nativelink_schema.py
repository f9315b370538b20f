"""Makes the JSON Schema of NativeLink's configuration: `python hack/nativelink_schema.py CHECKOUT`.

CHECKOUT is a folder with the sources of TraceMachina/nativelink at a version's tag. NativeLink has a program that
writes the schema, which needs cargo. The file is schemas/nativelink-VERSION.schema.json (schemas/README.md).
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).parents[1] / "schemas"
_WRITE = ("cargo", "run", "--quiet", "--bin", "build-schema", "--features", "dev-schema", "--package")


def normalised(schema: dict[str, Any], version: str) -> dict[str, Any]:
    """The schema without prose, and with what the executable refuses although its own schema allows it.

    Raises KeyError where the entry of a shard has another name.
    """
    found: dict[str, Any] = json.loads(json.dumps(schema), object_hook=_bare)
    found["title"] = f"NativeLink {version}"
    shard = found["$defs"]["ShardConfig"]
    shard["required"] = sorted({*shard["required"], "weight"})
    return found


def _bare(node: dict[str, Any]) -> dict[str, Any]:
    # A field of the configuration may be named like a keyword. Its value is a schema, not a text or a list.
    prose = {"description": str, "examples": list}
    return {key: item for key, item in node.items() if not isinstance(item, prose.get(key, ()))}


def main(checkout: Path) -> None:
    """Write the schema of a checkout, and print its path."""
    crate = checkout / "nativelink-config"
    version = f"v{tomllib.loads((crate / 'Cargo.toml').read_text())['package']['version']}"
    with tempfile.TemporaryDirectory() as folder:
        manifest = ("--manifest-path", checkout.resolve() / "Cargo.toml")
        subprocess.run([*_WRITE, crate.name, *manifest], cwd=folder, check=True)
        schema = json.loads((Path(folder) / "nativelink_config.schema.json").read_text())
    file = SCHEMAS / f"nativelink-{version}.schema.json"
    file.write_text(json.dumps(normalised(schema, version), indent=1, sort_keys=True, ensure_ascii=False))
    print(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
