// The entry point of the head loss's phase one. How many blocks a multiprocessor gets is in src/head/launch/plan.rs,
// too, as for the other entry points of the head loss.
#include "head_positives.cuh"

KERNEL(head_positives, HEAD_BLOCK, 2)(const HeadArgs a) { head_positives(a); }
