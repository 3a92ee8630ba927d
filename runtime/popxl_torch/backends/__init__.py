"""What computes: the reference (torch ops), the CPU's kernels, CUDA's kernels."""
