"""What the graphs of a program say of themselves: aliasing, effects and cost; no torch."""
