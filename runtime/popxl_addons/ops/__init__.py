"""Ops made of PopXL's ops."""

from .streams import host_load, host_store

__all__ = ["host_load", "host_store"]
