// The entry points of the head loss. How many blocks of phase two a multiprocessor gets is in src/cuda/raw/head/plan.rs,
// too.
#include "head_losses.cuh"
#include "head_positives.cuh"

// 80 registers; bf16 by integer arithmetic takes more.
#if defined(STORAGE_BF16) && __CUDA_ARCH__ < 800
constexpr int BACKWARD_BLOCKS = 2;
#else
constexpr int BACKWARD_BLOCKS = 3;
#endif

KERNEL(head_positives, HEAD_BLOCK, 2)(const HeadArgs a) { head_positives(a); }

KERNEL(head_losses_forward, HEAD_BLOCK, 4)(const HeadArgs a) { head_losses<false, true>(a); }
KERNEL(head_losses_forward_backward, HEAD_BLOCK, BACKWARD_BLOCKS)(const HeadArgs a) { head_losses<true, true>(a); }
KERNEL(head_losses_forward_any_beta, HEAD_BLOCK, 3)(const HeadArgs a) { head_losses<false, false>(a); }
KERNEL(head_losses_forward_backward_any_beta, HEAD_BLOCK, 2)(const HeadArgs a) { head_losses<true, false>(a); }
