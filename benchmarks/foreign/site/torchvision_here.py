"""A pytest plugin: torchvision can be imported where its library is made for another torch.

Its Python parts, such as `torchvision.ops.roi_align`, then work; they ask only that ops of the
library have been named.
"""

from __future__ import annotations

import importlib.machinery
import re
import sys
from pathlib import Path


class _NamesOps:
    """A finder that finds nothing: when torchvision is asked for, it names the ops first."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec is None or spec.origin is None:
            return
        import torch

        text = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
        names = set(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', text))
        library = torch.library.Library("torchvision", "FRAGMENT")
        for op in names:
            library.define(f"{op}(Tensor input) -> Tensor")
        self.library = library  # the ops live as long as it does


FINDER = _NamesOps()
sys.meta_path.insert(0, FINDER)  # type: ignore[arg-type]
