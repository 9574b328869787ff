// The entry points of the head loss's phase two at any beta: by pass.
#include "head_losses.cuh"

KERNEL(head_losses_forward_any_beta, HEAD_BLOCK, 3)(const HeadArgs a) { head_losses<false, false>(a); }
KERNEL(head_losses_forward_backward_any_beta, HEAD_BLOCK, 2)(const HeadArgs a) { head_losses<true, false>(a); }
