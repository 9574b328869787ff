//! The tests of what a device computes, in one program for the GPU kit: each of them alone would carry
//! the kernels. Not a test of its own (`test = false` in Cargo.toml).
//!
//! One module in a process: `kit graph::`. Some of them want it to themselves, as they say.

#[path = "../assign.rs"]
mod assign;
#[path = "../assign_edges.rs"]
mod assign_edges;
#[path = "../assign_graph.rs"]
mod assign_graph;
#[path = "../assign_head.rs"]
mod assign_head;
#[path = "../assign_reports.rs"]
mod assign_reports;
#[path = "../borrowed.rs"]
mod borrowed;
#[path = "../boxes.rs"]
mod boxes;
#[path = "../corners.rs"]
mod corners;
#[path = "../decode.rs"]
mod decode;
#[path = "../determinism.rs"]
mod determinism;
#[path = "../dfl_tiles.rs"]
mod dfl_tiles;
#[path = "../errors.rs"]
mod errors;
#[path = "../exhaustive.rs"]
mod exhaustive;
#[path = "../fcos.rs"]
mod fcos;
#[path = "../found_inf.rs"]
mod found_inf;
#[path = "../gfl.rs"]
mod gfl;
#[path = "../golden.rs"]
mod golden;
#[path = "../gradcheck.rs"]
mod gradcheck;
#[path = "../graph.rs"]
mod graph;
#[path = "../handles.rs"]
mod handles;
#[path = "../head.rs"]
mod head;
#[path = "../head_backward.rs"]
mod head_backward;
#[path = "../head_classes.rs"]
mod head_classes;
#[path = "../head_cuda.rs"]
mod head_cuda;
#[path = "../head_errors.rs"]
mod head_errors;
#[path = "../head_golden.rs"]
mod head_golden;
#[path = "../head_gradcheck.rs"]
mod head_gradcheck;
#[path = "../head_graph.rs"]
mod head_graph;
#[path = "../head_layouts.rs"]
mod head_layouts;
#[path = "../head_options.rs"]
mod head_options;
#[path = "../large.rs"]
mod large;
#[path = "../loading.rs"]
mod loading;
#[path = "../loading_graph.rs"]
mod loading_graph;
#[path = "../overlaps.rs"]
mod overlaps;
#[path = "../properties.rs"]
mod properties;
#[path = "../raw.rs"]
mod raw;
#[path = "../rounded_once.rs"]
mod rounded_once;
#[path = "../rounding.rs"]
mod rounding;
#[path = "../scale.rs"]
mod scale;
#[path = "../semantics.rs"]
mod semantics;
#[path = "../shapes.rs"]
mod shapes;
