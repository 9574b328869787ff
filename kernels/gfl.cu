// The entry point of QFL and DFL in one launch, losses and gradients.
#include "gfl.cuh"

KERNEL(gfl_forward_backward, GFL_BLOCK, 2)(const GflArgs a) { gfl<true>(a); }
