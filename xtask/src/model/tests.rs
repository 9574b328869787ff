//! The arithmetic, on figures that others have worked out by hand.

use super::cases::{Case, Op, time};
use super::grids::{self, Rule};
use super::machines::{MACHINES, Machine};
use super::time::{Share, throughput};
use crate::files::entries;
use crate::root;
use crate::sass::{Cost, Measured};
use std::fs;
use std::path::Path;

fn h200() -> &'static Machine {
    &MACHINES[0]
}

fn percent(share: &Share) -> f64 {
    (100.0 * share.filled()).round()
}

/// 3 blocks of QFL on each of 132 multiprocessors.
#[test]
fn blocks_that_share_steps_lose_less_than_those_that_share_tiles() {
    let slots = grids::slots(132, 3);
    let share = |rows, vector, rule| grids::qfl(rows, 80, vector, slots, rule).0;
    assert_eq!(slots, 396);
    assert_eq!(percent(&share(33_600, 4, Rule::Tiles)), 66.0);
    assert_eq!(percent(&share(33_600, 4, Rule::Steps)), 88.0);
    assert_eq!(percent(&share(134_400, 4, Rule::Tiles)), 88.0);
    assert_eq!(percent(&share(134_400, 4, Rule::Steps)), 96.0);
    assert_eq!(percent(&share(134_400, 8, Rule::Tiles)), 88.0);
    assert_eq!(percent(&share(134_400, 8, Rule::Steps)), 96.0);
    assert_eq!(share(8_400, 8, Rule::Tiles).blocks, 66);
    assert_eq!(share(8_400, 8, Rule::Steps), Share { blocks: 263, slots, mean: 1.0, most: 1.0 });
}

#[test]
fn one_wave_of_dfl() {
    let share = grids::dfl(262_144, 2, grids::slots(132, 8));
    assert_eq!(share, Share { blocks: 1024, slots: 1056, mean: 1.0, most: 1.0 });
    assert_eq!(percent(&grids::dfl(262_144, 4, grids::slots(132, 9))), 97.0);
}

/// With few blocks the wait decides (Little's law), with many the slowest service.
#[test]
fn rates_of_queues() {
    let alone = throughput(1, 0.8, &[0.5, 0.2]);
    assert!((alone - 1.0 / 1.5).abs() < 1e-12, "{alone}");
    // Two on one service of 1, without a wait: it is always busy.
    assert!((throughput(2, 0.0, &[1.0]) - 1.0).abs() < 1e-12);
    // By hand: 1 / 1.5; then 2 / (0.8 + 0.5 * (1 + 1/3) + 0.2 * (1 + 2/15)).
    let two = throughput(2, 0.8, &[0.5, 0.2]);
    let by_hand = 2.0 / (0.8 + 0.5 * (1.0 + 0.5 / 1.5) + 0.2 * (1.0 + 0.2 / 1.5));
    assert!((two - by_hand).abs() < 1e-12, "{two} {by_hand}");
    let many = throughput(100, 0.8, &[0.5, 0.2]);
    assert!((1.99..=2.0).contains(&many), "{many}");
}

fn measured(resident: u32, instructions: [f64; 2], mufu: [f64; 2]) -> Measured {
    let cost = |at: usize| Cost { instructions: instructions[at], mufu: mufu[at] };
    Measured {
        name: String::new(),
        of_loop: None,
        resident,
        registers: 64,
        fast: Some(cost(0)),
        general: cost(1),
        bytes_of_block: 20480.0,
    }
}

/// As sm_90 has them.
fn qfl(dtype: &str, backward: bool) -> Measured {
    match (dtype, backward) {
        ("f32", false) => measured(3, [14.9, 20.8], [1.0, 2.0]),
        ("f32", true) => measured(3, [22.4, 27.3], [1.0, 2.0]),
        (_, false) => measured(3, [12.3, 20.3], [1.0, 2.0]),
        (_, true) => measured(3, [18.4, 25.8], [1.0, 2.0]),
    }
}

fn percents(case: Case, rule: Rule) -> [f64; 2] {
    let figures = qfl(case.dtype, case.backward);
    let time = time(&case.launches(h200(), &[&figures], rule), h200());
    let copy = h200().copy_us(case.bytes() as f64);
    [100.0 * copy / time.most, 100.0 * copy / time.least]
}

fn case(rows: u64, dtype: &'static str, backward: bool) -> Case {
    Case { op: Op::Qfl, backward, dtype, rows, columns: 80 }
}

/// What the best case says of large sizes: bytes bind everything but the loss alone in 16 bits, where
/// instructions do.
#[test]
fn what_binds_large_problems() {
    for (dtype, backward) in [("f32", true), ("f32", false), ("bf16", true)] {
        let [worst, best] = percents(case(6_720_000, dtype, backward), Rule::Steps);
        assert!((98.0..=100.0).contains(&best), "{dtype} {backward}: {best}");
        assert!((60.0..95.0).contains(&worst), "{dtype} {backward}: {worst}");
    }
    let [_, best] = percents(case(6_720_000, "bf16", false), Rule::Steps);
    // 0.3 * 12.3 + 0.7 * 20.3 + 2.4 instructions an element of 2.15 bytes: 33.4 of 40.8 G elements a ms.
    assert!((80.0..86.0).contains(&best), "{best}");
}

/// What launches and waits decide: the fixed cost is 5 us, and a copy of 5.5 MB takes 4.
#[test]
fn small_problems_cannot_reach_a_copy() {
    let [worst, best] = percents(case(8_400, "f32", true), Rule::Steps);
    assert!(worst < best && best < 75.0, "{worst} {best}");
    let figures = qfl("f32", true);
    let fixed = case(8_400, "f32", true).launches(h200(), &[&figures], Rule::Steps)[0].fixed(h200());
    assert!((fixed - 4.5).abs() < 1e-9, "{fixed}");
}

#[test]
fn steps_are_no_slower_than_tiles() {
    for rows in [8_400, 33_600, 134_400, 672_000] {
        for dtype in ["f32", "bf16"] {
            let [tiles, steps] =
                [Rule::Tiles, Rule::Steps].map(|rule| percents(case(rows, dtype, true), rule)[0]);
            assert!(steps >= tiles, "{rows} {dtype}: {steps} {tiles}");
        }
    }
}

/// Who asks before it computes waits less: most where instructions take nearly as long as bytes.
#[test]
fn prefetching_narrows_what_queues_may_cost() {
    let figures = qfl("bf16", true);
    let mut launches = case(672_000, "bf16", true).launches(h200(), &[&figures], Rule::Steps);
    let before = launches[0].time(h200());
    launches[0].under_way = 2;
    let after = launches[0].time(h200());
    assert!((after.least - before.least).abs() < 1e-9, "bytes bind: {before:?} {after:?}");
    assert!(after.most < 0.92 * before.most, "{before:?} {after:?}");
}

/// As cli/src/bench/case.rs and cli/src/bench/head/mod.rs count them.
#[test]
fn bytes_are_those_of_the_bench() {
    let of = |op, dtype, backward, rows, columns| Case { op, backward, dtype, rows, columns }.bytes();
    assert_eq!(of(Op::Qfl, "f32", false, 10, 80), 10 * (320 + 12));
    assert_eq!(of(Op::Qfl, "bf16", true, 10, 80), 10 * (320 + 12));
    assert_eq!(of(Op::Dfl, "f16", true, 10, 80), 10 * (320 + 8));
    assert_eq!(of(Op::Integral, "f32", false, 10, 80), 10 * (320 + 4));
    assert_eq!(of(Op::Head, "f32", true, 356_800, 80), 330_196_992);
}

#[test]
fn the_head_shares_out_all_its_blocks() {
    for vector in [4, 8] {
        let share = grids::head_losses(16, &[16_700, 4_200, 1_050, 273, 77], 80, vector, true, 396);
        assert!((380..=406).contains(&share.blocks), "{share:?}");
        assert!(share.efficiency() > 0.85, "{share:?}");
    }
    let share = grids::head_positives(16, &[16_700, 4_200, 1_050, 273, 77], 264);
    assert!((260..=270).contains(&share.blocks) && share.most == 6.0, "{share:?}");
}

/// What this program has of the library and of the kernels is what stands there.
#[test]
fn constants_are_those_of_the_library() {
    let mut sources = String::new();
    read_all(&root().join("src"), &mut sources);
    read_all(&root().join("kernels"), &mut sources);
    for (name, value) in [
        ("QFL_BLOCK", grids::QFL_BLOCK),
        ("QFL_UNROLL", grids::QFL_UNROLL),
        ("DFL_BLOCK", grids::DFL_BLOCK),
        ("INTEGRAL_BLOCK", grids::INTEGRAL_BLOCK),
        ("HEAD_BLOCK", grids::HEAD_BLOCK),
        ("HEAD_UNROLL", grids::HEAD_UNROLL),
        ("MOST_STEPS", grids::MOST_STEPS),
        ("MOST_BLOCKS", grids::MOST_BLOCKS),
    ] {
        let [rust, cpp] = [format!("const {name}: u32 = "), format!("constexpr int {name} = ")];
        let found: Vec<_> = sources.split(&rust).skip(1).chain(sources.split(&cpp).skip(1)).collect();
        assert!(!found.is_empty(), "neither the library nor the kernels have {name}");
        assert!(found.iter().all(|rest| rest.starts_with(&format!("{value};"))), "{name} is not {value}");
    }
}

fn read_all(folder: &Path, text: &mut String) {
    for path in entries(folder).expect("a folder") {
        if path.is_dir() {
            read_all(&path, text);
        } else if path.extension().is_some_and(|extension| extension != "ptx") {
            *text += &fs::read_to_string(&path).expect("a source");
        }
    }
}
