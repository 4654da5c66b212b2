"""The whole forward of a decoder on the CPU in one call, for the models whose parts it knows."""
