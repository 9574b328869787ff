// The entry points of Quality Focal Loss at any beta: by shape of the work and pass.
#include "qfl.cuh"

KERNEL(qfl_linear_forward_any_beta, QFL_BLOCK, 2)(const QflArgs a) { qfl_linear<false, false>(a); }
KERNEL(qfl_linear_forward_backward_any_beta, QFL_BLOCK, 2)(const QflArgs a) { qfl_linear<true, false>(a); }
KERNEL(qfl_rows_forward_any_beta, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<false, false, false>(a); }
KERNEL(qfl_rows_forward_backward_any_beta, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<true, false, false>(a); }
KERNEL(qfl_dense_forward_any_beta, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<false, true, false>(a); }
KERNEL(qfl_dense_forward_backward_any_beta, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<true, true, false>(a); }
