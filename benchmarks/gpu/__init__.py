"""The parts of gpu_suite.py. Nothing here is imported before `checkout.use` has said where streamproc is."""
