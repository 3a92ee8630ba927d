"""What a graph did once, done again without Python: when (`replay`), on a CPU how (`recorder`)."""
