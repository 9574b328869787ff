// The entry point of the head loss's phase two at beta 2, the losses alone.
#include "head_losses.cuh"

KERNEL(head_losses_forward, HEAD_BLOCK, 4)(const HeadArgs a) { head_losses<false, true>(a); }
