// The entry points of Distribution Focal Loss, the loss alone: by number of bins.
#include "dfl.cuh"

KERNEL(dfl_tile16_forward, DFL_BLOCK, 8)(const DflArgs a) { dfl_tile<false, 16, DFL_BLOCK>(a); }
KERNEL(dfl_tile17_forward, DFL_BLOCK, 8)(const DflArgs a) { dfl_tile<false, 17, DFL_BLOCK>(a); }
KERNEL(dfl_rows_forward, DFL_ROWS_BLOCK, 2)(const DflArgs a) { dfl_rows<false>(a); }
