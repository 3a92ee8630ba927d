"""How a program is run: graphs lowered to torch, replicas as axes of one computation."""
