"""What a graph did once, done again without Python."""
