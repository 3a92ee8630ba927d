"""The modules of examples-utils, without its `__init__`: that imports far more than is needed."""

import os
from pathlib import Path

__path__ = [str(Path(os.environ["FOREIGN_CLONES"]) / "examples-utils" / "examples_utils")]
