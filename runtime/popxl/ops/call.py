"""PopXL's name of the module where calls are; `calls.py` has them."""

from popxl.ops.calls import CallSiteInfo, call, call_with_info

__all__ = ["CallSiteInfo", "call", "call_with_info"]
