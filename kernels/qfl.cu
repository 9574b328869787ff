// The entry points of Quality Focal Loss at beta 2, loss and gradient: by shape of the work.
#include "qfl_linear.cuh"
#include "qfl_rows.cuh"

KERNEL(qfl_linear_forward_backward, QFL_BLOCK, 3)(const QflArgs a) { qfl_linear<true, true>(a); }
KERNEL(qfl_rows_forward_backward, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<true, true>(a, false); }
KERNEL(qfl_dense_forward_backward, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<true, true>(a, true); }
