"""Run by every Python of the foreign programs' environment, also by those that they start."""

from popxl_torch import python38
from popxl_torch.run import use_standins

python38.allow_dataclass_defaults()
use_standins()
