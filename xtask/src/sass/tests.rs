//! Small kernels, written by hand, with ways through them that can be counted.

use super::budgets::Budgets;
use super::entries::{entries, matches};
use super::figures::{Assembled, Cost, MainLoop};
use super::flow::{Flow, Region, Way};
use super::listing;
use super::resources::Resources;
use crate::files::{has_extension, read};

/// A kernel on sm_90 of 320 threads a block, from lines as `nvdisasm` prints them, less the
/// addresses: `@P0 BRA next`, and labels as `next:`.
fn assembled(name: &str, lines: &str) -> Assembled {
    let mut text = format!(".other {name},@\"STO_CUDA_ENTRY STV_DEFAULT\"\n.text.{name}:\n");
    for (index, line) in lines.lines().map(str::trim).filter(|line| !line.is_empty()).enumerate() {
        match line.strip_suffix(':') {
            Some(label) => text += &format!(".L_{label}:\n"),
            None => text += &format!("/*{:04x}*/ {line} ;\n", index * 16),
        }
    }
    let kernel = listing::read(&text).pop().expect("the listing has a kernel");
    let flow = Flow::of(&kernel);
    let resources = Resources { registers: 64, ..Resources::default() };
    Assembled { kernel, flow, architecture: 90, threads: 320, resources }
}

/// Hot instructions, and those of the shortest and of the longest way round.
fn sizes(kernel: &Assembled, region: &Region) -> [usize; 3] {
    let count = |blocks: Vec<usize>| kernel.code(&blocks).count();
    let way = |way| count(kernel.round(region, way));
    [count(region.hot()), way(Way::Shortest), way(Way::Longest)]
}

const LOOP: &str = "
    MOV R0, RZ
    round:
    LDG.E.128 R4, [R2]
    MUFU.EX2 R4, R4
    @P0 BRA `(.L_round)
    EXIT";

#[test]
fn a_loop() {
    let kernel = assembled("qfl", LOOP);
    let loops = &kernel.flow.loops;
    assert_eq!(loops.len(), 1);
    assert_eq!((loops[0].depth, loops[0].innermost), (1, true));
    assert_eq!(sizes(&kernel, &loops[0]), [3, 3, 3]);
    assert_eq!(sizes(&kernel, &kernel.flow.body), [5, 5, 5]);
}

#[test]
fn a_kernel_without_a_loop_is_measured_as_a_whole() {
    let kernel = assembled(
        "qfl",
        "LDG.E.128 R4, [R2]
        @P0 EXIT
        MUFU.EX2 R4, R4
        @P1 BRA `(.L_end)
        STG.E.128 [R2], R4
        end:
        EXIT",
    );
    assert!(kernel.flow.loops.is_empty());
    let [main] = kernel.main_loops(MainLoop::Largest)[..] else { panic!("one region") };
    assert_eq!(sizes(&kernel, main), [6, 5, 6]);
    assert!(kernel.main_loops(MainLoop::Vectors).is_empty());
}

#[test]
fn a_loop_in_a_loop() {
    let kernel = assembled(
        "qfl",
        "outer:
        LDG.E.128 R4, [R2]
        inner:
        FADD R4, R4, R5
        FADD R4, R4, R6
        @P0 BRA `(.L_inner)
        STG.E.128 [R2], R4
        @P1 BRA `(.L_outer)
        EXIT",
    );
    let [outer, inner] = &kernel.flow.loops[..] else { panic!("two loops") };
    assert_eq!((outer.depth, outer.innermost), (1, false));
    assert_eq!((inner.depth, inner.innermost), (2, true));
    // The inner one counts once in the outer one.
    assert_eq!(sizes(&kernel, outer), [6, 6, 6]);
    assert_eq!(sizes(&kernel, inner), [3, 3, 3]);
    // The inner one has no vectors to load.
    assert!(kernel.main_loops(MainLoop::Vectors).is_empty());
}

/// A vote chooses one of two bodies; all lanes at the first one's end go past the second.
const TWO_WAYS: &str = "
    round:
    LDG.E.128 R4, [R2]
    LDG.E.128 R8, [R3]
    VOTE.ALL P0, P1
    @!P0 BRA `(.L_general)
    MUFU.EX2 R4, R4
    BRA `(.L_end)
    general:
    MUFU.EX2 R4, R4
    MUFU.RCP R5, R4
    FFMA R4, R4, R5, R6
    FFMA R4, R4, R5, R6
    end:
    STG.E.128 [R2], R4
    @P2 BRA `(.L_round)
    EXIT";

#[test]
fn two_ways_round() {
    let kernel = assembled("qfl", TWO_WAYS);
    let [main] = &kernel.flow.loops[..] else { panic!("one loop") };
    assert_eq!(sizes(&kernel, main), [12, 8, 10]);
    let figures = kernel.figures(MainLoop::Largest, 128, 2, 3);
    assert_eq!(figures.fast, Cost { instructions: 4.0, mufu: 0.5 });
    assert_eq!(figures.general, Cost { instructions: 5.0, mufu: 1.0 });
    assert_eq!((figures.loads_before_mufu, figures.narrow_loads, figures.narrow_stores), (2, 0, 0));
    assert_eq!(figures.kib_in_flight, 3.0 * 320.0 * 2.0 * 16.0 / 1024.0);
    // 64 registers let 3 blocks of 320 threads in; fewer, if the launch has fewer.
    assert_eq!(kernel.figures(MainLoop::Largest, 128, 2, 8).kib_in_flight, figures.kib_in_flight);
    assert_eq!(kernel.figures(MainLoop::Largest, 128, 2, 1).kib_in_flight, figures.kib_in_flight / 3.0);
}

#[test]
fn a_branch_by_a_predicate_among_the_operands() {
    let kernel = assembled(
        "qfl",
        "round:
        @!P0 BRA P1, `(.L_end)
        MUFU.EX2 R4, R4
        BRA P2, `(.L_end)
        MUFU.RCP R4, R4
        end:
        @P3 BRA `(.L_round)
        EXIT",
    );
    assert_eq!(sizes(&kernel, &kernel.flow.loops[0]), [5, 2, 5]);
}

#[test]
fn cold_code_stands_behind_the_loop() {
    let rare = |entry: &str| {
        format!(
            "round:
            LDG.E.128 R4, [R2]
            {entry}
            back:
            MUFU.EX2 R4, R4
            @P1 BRA `(.L_round)
            EXIT
            rare:
            FADD R4, R4, R5
            MUFU.RCP R4, R4
            BRA `(.L_back)"
        )
    };
    let kernel = assembled("qfl", &rare("@P0 BRA `(.L_rare)"));
    let [main] = &kernel.flow.loops[..] else { panic!("one loop") };
    assert_eq!(sizes(&kernel, main), [4, 4, 4]);
    let last = kernel.flow.blocks.len() - 1;
    assert!(main.contains(last) && main.is_cold(last));
    // Where every way leads through it, it is not cold.
    let kernel = assembled("qfl", &rare("BRA `(.L_rare)"));
    assert_eq!(sizes(&kernel, &kernel.flow.loops[0]), [7, 7, 7]);
}

#[test]
fn what_leads_to_a_call_is_cold() {
    let kernel = assembled(
        "qfl",
        "round:
        LDG.E.128 R4, [R2]
        @!P0 BRA `(.L_fast)
        MOV R8, 0x80
        @P2 BRA `(.L_other)
        FADD R4, R4, R5
        other:
        CALL.REL.NOINC `($__internal_0_$slowpath)
        fast:
        MUFU.EX2 R4, R4
        @P1 BRA `(.L_round)
        EXIT",
    );
    assert_eq!(sizes(&kernel, &kernel.flow.loops[0]), [4, 4, 4]);
}

#[test]
fn what_a_kernel_calls_rare_is_cold() {
    let code = |first: &str| {
        format!(
            "round:
            LDG.E.128 R4, [R2]
            {first}
            MOV R8, R9
            PMTRIG 0x1
            @P2 BRA `(.L_other)
            FADD R4, R4, R5
            other:
            MUFU.RCP R4, R4
            fast:
            MUFU.EX2 R4, R4
            @P1 BRA `(.L_round)
            EXIT"
        )
    };
    // With all that is only come to through it, in a block of its own or not.
    let kernel = assembled("qfl", &code("@!P0 BRA `(.L_fast)"));
    let [main] = &kernel.flow.loops[..] else { panic!("one loop") };
    assert_eq!(sizes(&kernel, main), [4, 4, 4]);
    // Where every way leads through it, it is not rare, whatever it says.
    let kernel = assembled("qfl", &code(""));
    assert_eq!(sizes(&kernel, &kernel.flow.loops[0]), [8, 7, 8]);
    // What is also come to by another way is not.
    let kernel = assembled("qfl", &code("@P0 BRA `(.L_other)\n@P4 BRA `(.L_fast)"));
    assert_eq!(sizes(&kernel, &kernel.flow.loops[0]), [6, 5, 5]);
}

#[test]
fn a_loop_that_is_cold_is_not_the_main_one() {
    let kernel = assembled(
        "qfl",
        "round:
        LDG.E.128 R4, [R2]
        @!P0 BRA `(.L_fast)
        PMTRIG 0x1
        again:
        FADD R4, R4, R5
        FADD R4, R4, R5
        FADD R4, R4, R5
        FADD R4, R4, R5
        @P2 BRA `(.L_again)
        fast:
        MUFU.EX2 R4, R4
        @P1 BRA `(.L_round)
        EXIT",
    );
    let [main] = kernel.main_loops(MainLoop::Largest)[..] else { panic!("one region") };
    assert_eq!(sizes(&kernel, main), [4, 4, 4]);
}

const BUDGETS: &str = r#"
[sizes]
max_bytes = 1000
units = {}

[every_kernel]
architectures = ["sm_75", "sm_90"]
max_spilled_bytes = 0
max_stack_bytes = 0
forbidden = ["LDL", "STL", "CALL"]

[[family]]
reason = "Two ways round."
blocks_launched = 3
forbidden = ["ATOM*", "MUFU.TANH"]
forbidden_in_main_loop = ["F2F"]

[[family.budget]]
kernels = ["qfl"]
storage = ["f32"]
elements = 1
max_registers = 64
fast = { instructions = 8, mufu = 1 }
general = { instructions = { sm_75 = 12, sm_90 = 10 }, mufu = 2 }
min_loads_before_mufu = 2
max_narrow_loads = 0
max_narrow_stores = 0
min_kib_in_flight = 30
"#;

fn all_faults(budgets: &Budgets, kernel: &Assembled) -> Vec<String> {
    let mut faults = budgets.broken_rules(kernel);
    for budget in budgets.of(kernel.name()) {
        faults.extend(budget.broken_rules(kernel));
        let checks = budget.checks(kernel);
        let faulty = checks.iter().filter(|check| !check.is_good);
        faults.extend(faulty.map(|check| format!("{} {check}", check.title)));
    }
    faults
}

/// All that is wrong with a kernel.
fn faults(lines: &str) -> Vec<String> {
    let budgets = Budgets::read(BUDGETS).unwrap();
    let kernel = assembled("qfl_f32", lines);
    all_faults(&budgets, &kernel)
}

#[test]
fn a_kernel_that_gets_worse_breaks_its_budget() {
    let worse = |from: &str, to: &str| {
        let lines = TWO_WAYS.replacen(from, to, 1);
        assert_ne!(lines, TWO_WAYS, "{from} is not there");
        faults(&lines)
    };
    assert_eq!(faults(TWO_WAYS), [""; 0]);
    assert_eq!(
        worse("FFMA R4, R4, R5, R6", "MUFU.LG2 R4, R4"),
        ["MUFU 3/2"],
        "one more special function, and no more instructions"
    );
    assert_eq!(
        worse("VOTE.ALL P0, P1", "MUFU.EX2 R9, R9\nVOTE.ALL P0, P1"),
        ["fast instr 9/8", "fast MUFU 2/1", "instr 11/10", "MUFU 3/2"],
    );
    assert_eq!(
        worse("LDG.E.128 R8, [R3]", "LDG.E.64 R8, [R3]"),
        ["narrow loads 1/0", "loads before MUFU 1/2", "KiB in flight 15/30"],
    );
    assert_eq!(worse("STG.E.128 [R2], R4", "STG.E.64 [R2], R4"), ["narrow stores 1/0"]);
    assert_eq!(
        worse("LDG.E.128 R8, [R3]\n    VOTE.ALL P0, P1", "MUFU.EX2 R9, R9\n    LDG.E.128 R8, [R3]"),
        ["fast MUFU 2/1", "MUFU 3/2", "loads before MUFU 1/2", "KiB in flight 15/30"],
    );
    assert_eq!(
        worse("FFMA R4, R4, R5, R6", "F2F.F32.F64 R4, R4"),
        ["F2F.F32.F64 is forbidden in the main loop and stands there 1 x"],
    );
    assert_eq!(
        worse("EXIT", "ATOMG.E.ADD.F32 R0, [R2], R4\nEXIT"),
        ["ATOMG.E.ADD.F32 is forbidden and stands there 1 x"],
    );
    assert_eq!(worse("EXIT", "LDL R0, [R1]\nEXIT"), ["LDL is forbidden and stands there 1 x"]);
}

#[test]
fn a_short_way_that_leaves_the_work_out_does_not_count() {
    let skips = TWO_WAYS.replacen("VOTE.ALL P0, P1", "@P3 BRA `(.L_end)", 1);
    let faults = faults(&skips);
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].starts_with("the shortest way has 0.00 MUFU"), "{faults:?}");
}

/// Two loops over vectors in one over tiles; in the first stands a rare loop. The second loads 8 bytes.
const TWO_LOOPS: &str = "
    tile:
    LDG.E R0, [R0]
    positions:
    LDG.E.128 R4, [R2]
    LDG.E.128 R8, [R3]
    @!P0 BRA `(.L_plain)
    PMTRIG 0x1
    again:
    LDG.E.128 R8, [R3]
    FADD R4, R4, R5
    @P3 BRA `(.L_again)
    plain:
    MUFU.EX2 R4, R4
    STG.E.128 [R2], R4
    @P1 BRA `(.L_positions)
    halves:
    LDG.E.64 R4, [R2]
    LDG.E.64 R8, [R3]
    LDG.E.64 R8, [R3]
    MUFU.EX2 R4, R4
    STG.E.64 [R2], R4
    @P2 BRA `(.L_halves)
    @P4 BRA `(.L_tile)
    EXIT";

#[test]
fn a_budget_for_each_of_some_loops() {
    let start = &BUDGETS[..BUDGETS.find("[[family.budget]]").unwrap()];
    let budget = |loops: &str, elements: u32, loads: u32, kib: f64| {
        format!(
            "[[family.budget]]
            kernels = [\"qfl\"]
            storage = [\"f32\"]
            loop = {loops}
            elements = {elements}
            max_registers = 64
            general = {{ instructions = 6, mufu = 1 }}
            min_loads_before_mufu = {loads}
            max_narrow_loads = 0
            max_narrow_stores = 0
            min_kib_in_flight = {kib}\n"
        )
    };
    let positions = budget("{ name = \"positions\", loads = 2 }", 1, 2, 30.0);
    let halves = budget("{ name = \"halves\", loads = 3, bits = 64 }", 1, 3, 22.5);
    let read = |text: &str| Budgets::read(&format!("{start}{text}")).unwrap();
    let faults = |text: &str| all_faults(&read(text), &assembled("qfl_f32", TWO_LOOPS));
    assert_eq!(faults(&format!("{positions}{halves}")), [""; 0]);
    let titles: Vec<_> =
        read(&format!("{positions}{halves}")).of("qfl_f32").iter().map(|b| b.title("qfl")).collect();
    assert_eq!(titles, ["qfl, positions", "qfl, halves"]);

    // Each bound is for its own loop.
    let worse = halves.replace("instructions = 6", "instructions = 5");
    assert_eq!(faults(&format!("{positions}{worse}")), ["instr 6/5"]);
    let wider = halves.replace(", bits = 64", "");
    assert_eq!(
        faults(&format!("{positions}{wider}")),
        ["narrow loads 3/0", "narrow stores 1/0", "loads before MUFU 0/3", "KiB in flight 0/22.5"]
    );
    // None is forgotten, and none is taken for another.
    assert_eq!(faults(&halves), ["a loop with 2 loads of 64 bits and more has no budget"]);
    let four = positions.replace("loads = 2 }", "loads = 4 }");
    let lost = faults(&format!("{four}{halves}"));
    assert!(lost.contains(&"0 loops, not 1, have 4 loads of 64 bits and more".to_owned()), "{lost:?}");

    let entries = entries(".visible .entry qfl_f32(\n.maxntid 320, 1, 1\n").unwrap();
    assert_eq!(read(&format!("{positions}{halves}")).cover(&entries), Ok(()));
    let twice = read(&format!("{positions}{positions}")).cover(&entries);
    assert_eq!(twice, Err("qfl_f32 has 2 budgets".to_owned()));
}

#[test]
fn every_kernel_has_one_budget() {
    let budgets = Budgets::read(BUDGETS).unwrap();
    let image = ".visible .entry qfl_f32(\n.maxntid 320, 1, 1\n";
    let kernels = |more: &str| -> Result<(), String> {
        let text = format!("{image}{more}");
        budgets.cover(&entries(&text)?)
    };
    assert_eq!(kernels(""), Ok(()));
    assert_eq!(
        kernels(".visible .entry dfl_f32(\n.maxntid 128, 1, 1\n"),
        Err("dfl_f32 has no budget".to_owned())
    );
    assert_eq!(
        kernels(".visible .entry dfl_f32(\n"),
        Err("dfl_f32 does not say how many threads its blocks have".to_owned())
    );
    assert_eq!(budgets.cover(&[]), Err("there is no kernel qfl_f32".to_owned()));

    let two = format!("{BUDGETS}{}", &BUDGETS[BUDGETS.find("[[family]]").unwrap()..]);
    let entries = entries(image).unwrap();
    assert_eq!(entries[0].threads, 320);
    assert_eq!(Budgets::read(&two).unwrap().cover(&entries), Err("qfl_f32 has 2 budgets".to_owned()));
}

#[test]
fn a_misspelt_budget_is_an_error() {
    let error = |from: &str, to: &str| Budgets::read(&BUDGETS.replacen(from, to, 1)).expect_err(to);
    assert!(error("max_registers = 64", "max_register = 64").contains("max_register"));
    assert!(error("mufu = 1 }", "muffu = 1 }").contains("muffu"));
    assert!(error("{ sm_75 = 12, sm_90 = 10 }", "{ sm_90 = 10 }").contains("each of the architectures"));
    assert!(error(r#"["sm_75", "sm_90"]"#, r#"["sm_75", "sm_91"]"#).contains("sm_91"));
    assert!(error("Two ways round.", " ").contains("no reason"));
    assert!(error("elements = 1", "elements = 0").contains("no elements"));
}

/// That of the repository covers the kernels of the repository.
#[test]
fn the_budgets_are_those_of_the_kernels() {
    let kernels = crate::root().join("kernels");
    let budgets = Budgets::of_checkout().unwrap();
    let files = crate::files::entries(&kernels.join("ptx")).unwrap();
    let ptx = files.iter().filter(|path| has_extension(path, "ptx"));
    let images: Vec<String> = ptx.map(|path| read(path).unwrap()).collect();
    let entries: Vec<_> = images.iter().flat_map(|image| entries(image).unwrap()).collect();
    assert_eq!(budgets.cover(&entries), Ok(()));
}

#[test]
fn a_star_stands_for_any_characters() {
    assert!(matches("*", "") && matches("MUFU*", "MUFU.EX2") && matches("*.F32*", "RED.E.ADD.F32.FTZ"));
    assert!(!matches("MUFU", "MUFU.EX2") && !matches("*.F32*", "RED.E.ADD") && !matches("A*B", "AC"));
}
