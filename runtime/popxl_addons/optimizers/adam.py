"""The name of the Adam optimiser, which is not there."""

from popxl_shared.absent import OPTIMISERS, absent_class

AdamOptimizerStep = absent_class("popxl_addons.optimizers.adam.AdamOptimizerStep", OPTIMISERS)
