"""The names of automatic differentiation, which is not there."""

from popxl_shared.absent import GRADIENTS, absent

autodiff = absent("popxl_addons.autodiff", GRADIENTS)
autodiff_with_accumulation = absent("popxl_addons.autodiff_with_accumulation", GRADIENTS)
remap_grad_info = absent("popxl_addons.transforms.autodiff.remap_grad_info", GRADIENTS)
