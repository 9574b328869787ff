// The entry points of the head loss.
#include "head.cuh"

KERNEL(head_positives, HEAD_BLOCK, 2)(const HeadArgs a) { head_positives(a); }
KERNEL(head_losses_forward, HEAD_BLOCK, 2)(const HeadArgs a) { head_losses<false>(a); }
KERNEL(head_losses_forward_backward, HEAD_BLOCK, 2)(const HeadArgs a) { head_losses<true>(a); }
