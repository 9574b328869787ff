// The entry points of Distribution Focal Loss, loss and gradient: by number of bins.
#include "dfl.cuh"

// Blocks for each multiprocessor, which sets how many registers a thread may have: see `dfl_tile`. The
// backward of 16 bins works on whole vectors of shared memory, which takes more registers: 6 blocks, 80
// registers, 48 KiB in flight. Rounding to bf16 without an instruction for it takes still more.
#if defined(STORAGE_BF16) && __CUDA_ARCH__ < 800
constexpr int TILE16_BACKWARD_BLOCKS = 5;
#else
constexpr int TILE16_BACKWARD_BLOCKS = 6;  // and so many are launched: src/dfl/launch.rs
#endif

KERNEL(dfl_tile16_forward_backward, DFL_BLOCK, TILE16_BACKWARD_BLOCKS)(const DflArgs a) { dfl_tile<true, 16, DFL_BLOCK>(a); }
KERNEL(dfl_tile17_forward_backward, DFL_BLOCK, 8)(const DflArgs a) { dfl_tile<true, 17, DFL_BLOCK>(a); }
KERNEL(dfl_rows_forward_backward, DFL_ROWS_BLOCK, 2)(const DflArgs a) { dfl_rows<true>(a); }
