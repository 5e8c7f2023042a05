"""Write the catalog's model shapes as folders with a config.json, for machines without the catalog.

    python scripts/write_shapes.py

`python -m runtime.bench ... --model scripts/shapes/NAME --random-weights` then needs no pydantic.
"""

from __future__ import annotations

import json
from pathlib import Path

from perfmodel import catalog
from runtime import hf_config

SHAPES = Path(__file__).parent / "shapes"
NAMES = (
    "llama-2-7b",
    "llama-2-7b-32k",
    "llama-3.1-8b",
    "llama-3.1-70b",
    "tinyllama-1.1b",
)


def shape_text(name: str) -> str:
    """The config.json of a catalog model."""
    return json.dumps(hf_config(catalog.model(name)), indent=2) + "\n"


def main() -> None:
    """Write every shape that the scripts here run."""
    for name in NAMES:
        folder = SHAPES / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(shape_text(name), encoding="utf-8")
        print(folder)


if __name__ == "__main__":
    main()
