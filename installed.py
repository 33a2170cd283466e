"""Imported first by what is run: what is missing is one sentence, not a traceback."""

import importlib
import os
import re
import sys
from pathlib import Path

# waiting threads soon sleep, so that company on a core does not bring two threads to a standstill
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # its greeting
MODULES = {"box2d": "Box2D", "pygame-ce": "pygame"}  # packages that are imported by other names

for line in Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8").splitlines():
    package = re.split("[=<>]", line)[0]
    try:
        importlib.import_module(MODULES.get(package, package))
    except (ImportError, OSError) as error:  # OSError: a library that it needs
        print(
            f"{Path(sys.argv[0]).name}: {package} can't be imported here ({error}): activate your"
            " virtual environment, or pip install -r requirements.txt (Python 3.11 to 3.13; there"
            " is no box2d for others, nor for Linux on ARM).",
            file=sys.stderr,
        )
        sys.exit(2)
