"""The host side, one room a job; each room's own text says what it offers.

Rooms, from the top: `serving` and `benchmark`, `planning`, `generation`, `checkpoints`. A room
imports those below it, never one above. The files here are what every script does around its work.
"""
