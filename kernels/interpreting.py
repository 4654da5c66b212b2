"""Whether Triton's kernels run in its interpreter, on tensors of the CPU."""

import os

# Triton reads the variable when it is imported, and decorates kernels accordingly: it is set before that or not at all.
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
