"""Damaged and hostile files, drawn at random, given to everything that reads files."""
