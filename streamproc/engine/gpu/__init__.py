"""The forward of a decoder by Triton's kernels, for the models whose parts are known."""
