"""What this runtime offers beside PopXL's own interface."""
