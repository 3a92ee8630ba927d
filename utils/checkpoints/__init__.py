"""From a folder or hub id to a session's weights.

A checkpoint is opened without being loaded (`checkpoint`), checked against the settings, and read
one tensor at a time through the builders' mappings. Weights may come quantised from the cache
(`kept_weights`), from memory maps (`memmap`) or, where only sizes matter, at random
(`random_weights`). Raises `CheckpointError`, one line that names the file.
"""
