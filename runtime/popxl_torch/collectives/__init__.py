"""Replicas as mesh axes, and collectives over these, within a process and across processes."""
