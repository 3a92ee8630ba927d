"""Stands in for Aleph Alpha's magma, which is in no registry: its classes can be named, not used."""

import sys

from popxl_torch.absent import AbsentModule

MODULES = "adapters image_encoders image_input image_prefix magma sampling transforms"

for name in ("magma", *(f"magma.{module}" for module in MODULES.split())):
    sys.modules[name] = AbsentModule(name)
