// The entry points of Quality Focal Loss at any beta: by shape of the work and pass. A target for every element takes
// the same kernel as labels do. In f32 a thread computes fewer elements at once, and more blocks have the registers.
#include "qfl_linear.cuh"
#include "qfl_rows.cuh"

constexpr bool SINGLE = sizeof(Scalar) == 4;

KERNEL(qfl_linear_forward_any_beta, QFL_BLOCK, 3)(const QflArgs a) { qfl_linear<false, false>(a); }
KERNEL(qfl_linear_forward_backward_any_beta, QFL_BLOCK, SINGLE ? 3 : 2)(const QflArgs a) { qfl_linear<true, false>(a); }
KERNEL(qfl_rows_forward_any_beta, QFL_ROWS_BLOCK, SINGLE ? 4 : 3)(const QflArgs a) { qfl_rows<false, false>(a, a.target); }
KERNEL(qfl_rows_forward_backward_any_beta, QFL_ROWS_BLOCK, SINGLE ? 3 : 2)(const QflArgs a) { qfl_rows<true, false>(a, a.target); }
