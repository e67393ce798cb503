"""The columns of a row and the noise streams, for the kernels and their oracles.

``csrc/core/step/row.h`` and ``stepfuse.samplers.table`` define the same; ``tests/kernels/test_columns.py`` compares
them. No torch, no Triton: the oracles need neither.
"""

from __future__ import annotations

#: In memory order.
COLUMNS = ("t", "s", "g", "p_x", "p_e", "lo", "hi", "q_x", "q_d", "q_e", "q_h", "q_z", "u_x", "u_d", "u_e", "u_h")

#: Of the second line, in memory order.
SECOND_LINE: tuple[str, ...] = (
    *("q_u", "q_h2", "q_h3", "u_u", "u_z", "u_h2", "u_h3"),
    *("v_x", "v_d", "v_e", "v_h", "v_h2", "w_h", "w_h2", "w_h3", "spare"),
)

#: Ways to blend two predictions, by their numbers: ``csrc/core/step/guidance.h`` says what each is.
BLENDS = ("plain", "projected", "projected_clean", "optimized_scale")

#: The prediction's coefficients, and those of the state beside each: what guidance adapts.
OF_PREDICTION = ("p_e", "q_e", "u_e", "v_e")
OF_STATE = ("p_x", "q_x", "u_x", "v_x")

#: Noise streams of one seed: the initial state, and the noise that a step adds.
INITIAL_STATE, STEP = 0, 1
