"""Stands in for Aleph Alpha's magma, which is in no registry: classes that can only be named."""

import sys

from popxl_torch.absent import AbsentModule

MODULES = "adapters image_encoders image_input image_prefix magma sampling transforms"

for name in ("magma", *(f"magma.{module}" for module in MODULES.split())):
    sys.modules[name] = AbsentModule(name)
