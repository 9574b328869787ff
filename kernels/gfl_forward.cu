// The entry point of QFL and DFL in one launch, the losses alone.
#include "gfl.cuh"

KERNEL(gfl_forward, GFL_BLOCK, 2)(const GflArgs a) { gfl<false>(a); }
