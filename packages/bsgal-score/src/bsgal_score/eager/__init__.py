"""The torch implementations, one operation a file: for CPUs, and where Triton is missing."""
