// The entry points of Quality Focal Loss: by shape of the work, pass and beta, in the order that
// src/cuda/raw.rs counts in.
#include "qfl.cuh"

KERNEL(qfl_linear_forward, QFL_BLOCK, 3)(const QflArgs a) { qfl_linear<false, true>(a); }
KERNEL(qfl_linear_forward_backward, QFL_BLOCK, 3)(const QflArgs a) { qfl_linear<true, true>(a); }
KERNEL(qfl_linear_forward_any_beta, QFL_BLOCK, 2)(const QflArgs a) { qfl_linear<false, false>(a); }
KERNEL(qfl_linear_forward_backward_any_beta, QFL_BLOCK, 2)(const QflArgs a) { qfl_linear<true, false>(a); }
KERNEL(qfl_rows_forward, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<false, false, true>(a); }
KERNEL(qfl_rows_forward_backward, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<true, false, true>(a); }
KERNEL(qfl_rows_forward_any_beta, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<false, false, false>(a); }
KERNEL(qfl_rows_forward_backward_any_beta, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<true, false, false>(a); }
KERNEL(qfl_dense_forward, QFL_ROWS_BLOCK, 3)(const QflArgs a) { qfl_rows<false, true, true>(a); }
KERNEL(qfl_dense_forward_backward, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<true, true, true>(a); }
KERNEL(qfl_dense_forward_any_beta, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<false, true, false>(a); }
KERNEL(qfl_dense_forward_backward_any_beta, QFL_ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<true, true, false>(a); }
