"""Every op in torch: what other back ends are tested against."""
