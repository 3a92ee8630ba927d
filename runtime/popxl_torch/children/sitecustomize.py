"""Run by every Python that a program under `popxl_torch.run` starts: it gets the same."""

from popxl_torch.run import inherit

inherit()
