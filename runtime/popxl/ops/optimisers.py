"""The names of optimisers' ops, which are not there."""

from popxl_shared.absent import OPTIMISERS, absent

lamb_square = absent("lamb_square", OPTIMISERS)
adam_updater = absent("adam_updater", OPTIMISERS)
adam_var_update = absent("adam_var_update", OPTIMISERS)
adamax_updater = absent("adamax_updater", OPTIMISERS)
lamb_updater = absent("lamb_updater", OPTIMISERS)
