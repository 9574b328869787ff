// Box losses: 1 - IoU and its variants, and the gradient with respect to the predictions. One
// thread a box, as `naive_boxes` in naive/naive.cu. Boxes are f32 always, so this is compiled for f32 alone.
#include "boxes.cuh"

constexpr int BLOCK = 128;  // twin in src/boxes/launch.rs

// Field by field the same as `BoxesArgs` in src/boxes/launch.rs.
struct BoxesArgs {
    const float* pred;      // [boxes, 4]
    const float* target;    // [boxes, 4]
    const float* upstream;  // [boxes]: gradient with respect to the losses; null: ones
    float* loss;            // [boxes], or null
    float* grad;            // [boxes, 4]
    u64 boxes;
    double eps;
    u32 kind;               // as in `IouKind`
    u32 unused;
};

template <bool GRADIENT>
DEVICE void boxes(const BoxesArgs& a) {
    const u64 stride = (u64)gridDim.x * BLOCK;
    for (u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x; i < a.boxes; i += stride) {
        const Box pred = box_of(load_corners(a.pred + 4 * i)), target = box_of(load_corners(a.target + 4 * i));
        const IouLoss result = iou_loss(a.kind, pred, target, a.eps);
        if (a.loss) a.loss[i] = (float)result.loss;
        if (GRADIENT) {
            const double scale = a.upstream ? a.upstream[i] : 1.0;
            Corners grad;
#pragma unroll
            for (int side = 0; side < 4; ++side) grad.side[side] = (float)(scale * result.grad[side]);
            store_corners(a.grad + 4 * i, grad);
        }
    }
}

KERNEL(boxes_forward, BLOCK, 4)(const BoxesArgs a) { boxes<false>(a); }
KERNEL(boxes_forward_backward, BLOCK, 4)(const BoxesArgs a) { boxes<true>(a); }
