"""What the application's scripts share: set-up, checkpoints, sampling, the token loop."""
