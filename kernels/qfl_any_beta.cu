// The entry points of Quality Focal Loss at any beta: by shape of the work and pass. A target for every element takes
// the same kernel as labels do.
#include "qfl.cuh"

KERNEL(qfl_linear_forward_any_beta, QFL_BLOCK, 2)(const QflArgs a) { qfl_linear<false, false>(a); }
KERNEL(qfl_linear_forward_backward_any_beta, QFL_BLOCK, 2)(const QflArgs a) { qfl_linear<true, false>(a); }
KERNEL(qfl_rows_forward_any_beta, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<false, false>(a, a.target); }
KERNEL(qfl_rows_forward_backward_any_beta, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<true, false>(a, a.target); }
