"""Triton kernels, one operation a file: the jit function, then the wrapper that launches it.

Importing a module of this folder imports Triton; `bsgal_score.ops` does so on the first call that
needs it.
"""
