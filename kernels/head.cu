// The entry point of the head loss's phase two at beta 2, losses and gradients.
#include "head_losses.cuh"

// 80 registers; bf16 by integer arithmetic takes more.
#if defined(STORAGE_BF16) && __CUDA_ARCH__ < 800
constexpr int BACKWARD_BLOCKS = 2;
#else
constexpr int BACKWARD_BLOCKS = 3;
#endif

KERNEL(head_losses_forward_backward, HEAD_BLOCK, BACKWARD_BLOCKS)(const HeadArgs a) { head_losses<true, true>(a); }
