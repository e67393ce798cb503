"""The columns of a row, for the kernels.

``csrc/core/step/row.h`` and ``stepfuse.samplers.table`` say the same in their words;
``tests/kernels/test_layout.py`` reads all of them. No torch, no Triton: what builds without either may import this.
"""

from __future__ import annotations

#: In memory order.
COLUMNS = ("t", "s", "g", "p_x", "p_e", "lo", "hi", "q_x", "q_d", "q_e", "q_h", "q_z", "u_x", "u_d", "u_e", "u_h")

#: The prediction's coefficients: what guidance rescale scales.
OF_PREDICTION = ("p_e", "q_e", "u_e")

#: Noise streams of one seed: the starting state, and the noise that a step adds.
INITIAL_STATE, STEP = 0, 1
