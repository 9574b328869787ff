// The entry points of Quality Focal Loss at beta 2, the loss alone: by shape of the work.
#include "qfl_linear.cuh"
#include "qfl_rows.cuh"

KERNEL(qfl_linear_forward, QFL_BLOCK, 3)(const QflArgs a) { qfl_linear<false, true>(a); }
KERNEL(qfl_rows_forward, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<false, true>(a, false); }
KERNEL(qfl_dense_forward, QFL_ROWS_BLOCK, 3)(const QflArgs a) { qfl_rows<false, true>(a, true); }
