"""Runs public PopXL programs, which nobody here wrote, on this runtime."""
