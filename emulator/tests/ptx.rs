//! The mode that runs PTX, whatever the environment says: every test has a text of its own.

mod common;

use common::{Device, entry_points, shape};
use cudarc::driver::{
    CudaFunction, DriverError, PushKernelArg,
    sys::{self, CUresult},
};
use std::path::Path;

fn device() -> Option<Device> {
    Device::of(gfocal_emulator::install_for_ptx())
}

/// A kernel `k` with one pointer, which %out holds, and %t as the thread's index and %lane, the
/// address of the thread's own word.
fn kernel(variables: &str, body: &str) -> String {
    format!(
        "// by hand\n.version 8.0\n.target sm_75\n.address_size 64\n{variables}\n\
         .visible .entry k(.param .u64 pointer)\n.maxntid 128, 1, 1\n{{\n\
         .reg .pred %p<4>;\n.reg .b16 %h<4>;\n.reg .b32 %t, %x<8>;\n.reg .f32 %f<4>;\n\
         .reg .b64 %out, %lane, %d<8>;\n.reg .f64 %g<4>;\n\
         ld.param.u64 %out, [pointer];\ncvta.to.global.u64 %out, %out;\nmov.u32 %t, %tid.x;\n\
         mad.wide.u32 %lane, %t, 4, %out;\n{body}\nret;\n}}\n"
    )
}

/// The line of a kernel's text in which these words first are.
fn line_of(text: &str, words: &str) -> usize {
    1 + text.lines().position(|line| line.contains(words)).unwrap()
}

impl Device {
    fn function(&self, text: &str) -> Result<CudaFunction, DriverError> {
        self.context.load_module(text.into()).unwrap().load_function("k")
    }

    /// Runs it on a buffer of these words, which it returns.
    fn run(&self, text: &str, blocks: u32, threads: u32, words: &[u32]) -> Result<Vec<u32>, DriverError> {
        let f = self.function(text)?;
        let out = self.stream.clone_htod(words)?;
        // SAFETY: what the text does wrong is what the emulator is to notice.
        unsafe { self.stream.launch_builder(&f).arg(&out).launch(shape(blocks, threads)) }?;
        self.stream.clone_dtoh(&out)
    }

    /// How many of 100 seeds give another result than `expected`.
    fn wrong_seeds(&self, text: &str, blocks: u32, threads: u32, expected: &[u32]) -> usize {
        let wrong = |seed| {
            self.emulator.set_seed(seed);
            self.run(text, blocks, threads, &vec![0; expected.len()]).unwrap() != expected
        };
        (0..100).filter(|&seed| wrong(seed)).count()
    }
}

/// A launch fails, with one fault that has these words in it.
#[track_caller]
fn fails(text: &str, threads: u32, code: CUresult, words: &[&str]) {
    let Some(device) = device() else { return };
    device.expect(device.run(text, 1, threads, &[0; 128]), code, words);
}

#[test]
fn every_entry_point_of_the_repository_is_understood() {
    let Some(device) = device() else { return };
    for (name, f) in entry_points(&device.context) {
        assert!(f.is_ok(), "{name}: {:?}", device.emulator.last_fault());
        assert!(f.unwrap().shared_size_bytes().unwrap() <= 48 << 10, "{name}");
    }
    device.no_fault();
}

/// One instruction on a word of each of 32 lanes, with the word that it must make of it.
#[test]
fn instructions() {
    let Some(device) = device() else { return };
    const NAN: u32 = 0x7fff_ffff;
    let minus_zero = 1 << 31;
    let one = 1f32.to_bits();
    // %x0 and %f0 hold the word, %x1 and %f1 are for the result; %d0 and %g0 hold its double.
    let cases: &[(&str, u32, u32)] = &[
        ("add.s32 %x1, %x0, -1;", 0, u32::MAX),
        ("shl.b32 %x1, %x0, 32;", 5, 0),
        ("shr.u32 %x1, %x0, 33;", u32::MAX, 0),
        ("shr.s32 %x1, %x0, 40;", 1 << 31, u32::MAX),
        ("bfi.b32 %x1, %x0, 255, 4, 8;", 0, 0xf),
        ("bfi.b32 %x1, %x0, 0, 28, 8;", 0xff, 0xf000_0000),
        ("lop3.b32 %x1, %x0, 0xff00, 0xf0f0, 0xca;", 0xffff_0000, 0x0000_f0f0),
        ("prmt.b32 %x1, %x0, 0x08070605, 0x5410;", 0x0403_0201, 0x0605_0201),
        ("prmt.b32 %x1, %x0, 0, 0x8880;", 0x80, 0xffff_ff80),
        ("mul.hi.u32 %x1, %x0, %x0;", u32::MAX, u32::MAX - 1),
        ("rem.u32 %x1, %x0, 7;", 100, 2),
        ("div.s32 %x1, %x0, -7;", 100, (-14i32).cast_unsigned()),
        ("cvt.u16.u32 %h0, %x0; cvt.s32.s16 %x1, %h0;", 0x1_8000, 0xffff_8000),
        ("cvt.s32.s8 %x1, %x0;", 0x180, 0xffff_ff80),
        ("mov.b32 {%h0, %h1}, %x0; mov.b32 %x1, {%h1, %h0};", 0x1234_5678, 0x5678_1234),
        ("cvt.s64.s32 %d0, %x0; mov.b64 {%x2, %x1}, %d0;", 1 << 31, u32::MAX),
        ("setp.lt.s32 %p0, %x0, 0; selp.b32 %x1, 1, 2, %p0;", 1 << 31, 1),
        ("setp.lt.u32 %p0, %x0, 0; selp.b32 %x1, 1, 2, %p0;", 1 << 31, 2),
        ("setp.ne.f32 %p0, %f0, %f0; selp.b32 %x1, 1, 2, %p0;", NAN, 2),
        ("setp.neu.f32 %p0, %f0, %f0; selp.b32 %x1, 1, 2, %p0;", NAN, 1),
        ("setp.gt.f32 %p0, %f0, 0f00000000; @!%p0 mov.u32 %x1, 7;", one, 0xaaaa_aaaa),
        ("setp.gt.f32 %p0, %f0, 0f00000000; @%p0 mov.u32 %x1, 7;", one, 7),
        ("mov.pred %p0, -1; not.pred %p1, %p0; selp.b32 %x1, 1, 2, %p1;", 0, 2),
        ("add.f32 %f1, %f0, 0f3F800000;", 0xffc0_1234, NAN),
        ("min.f32 %f1, %f0, 0f3F800000;", NAN, one),
        ("min.f32 %f1, %f0, 0f00000000;", minus_zero, minus_zero),
        ("max.f32 %f1, %f0, 0f00000000;", minus_zero, 0),
        ("neg.f32 %f1, %f0;", one, one | minus_zero),
        ("cvt.sat.f32.f32 %f1, %f0;", NAN, 0),
        ("cvt.sat.f32.f32 %f1, %f0;", 2f32.to_bits(), one),
        ("cvt.rzi.u32.f32 %x1, %f0;", NAN, 0),
        ("cvt.rzi.u32.f32 %x1, %f0;", (-1f32).to_bits(), 0),
        ("cvt.rzi.u32.f32 %x1, %f0;", 1e20f32.to_bits(), u32::MAX),
        ("cvt.rzi.s32.f32 %x1, %f0;", (-1e20f32).to_bits(), 1 << 31),
        ("cvt.rni.s32.f32 %x1, %f0;", 2.5f32.to_bits(), 2),
        ("cvt.f64.f32 %g0, %f0; cvt.rzi.u32.f64 %x1, %g0;", NAN, 1 << 31),
        ("cvt.f64.f32 %g0, %f0; cvt.rn.f32.f64 %f1, %g0;", 0xff80_0001, NAN),
        ("cvt.rn.f16.f32 %h0, %f0; cvt.u32.u16 %x1, %h0;", NAN, 0x7fff),
        ("cvt.rn.f16.f32 %h0, %f0; cvt.u32.u16 %x1, %h0;", 65519f32.to_bits(), 0x7bff),
        ("cvt.rn.f16.f32 %h0, %f0; cvt.u32.u16 %x1, %h0;", 65520f32.to_bits(), 0x7c00),
        ("cvt.rn.f16.f32 %h0, %f0; cvt.u32.u16 %x1, %h0;", (-3e-8f32).to_bits(), 0x8001),
        ("cvt.rn.f16x2.f32 %x1, %f0, 0f40000000;", one, 0x3c00_4000),
        ("cvt.rn.bf16x2.f32 %x1, %f0, 0f40000000;", 0x3f80_8000, 0x3f80_4000),
        ("cvt.rn.bf16x2.f32 %x1, %f0, 0f40000000;", 0x3f81_8000, 0x3f82_4000),
        ("cvt.rz.f16.f32 %h0, %f0; cvt.u32.u16 %x1, %h0;", 70000f32.to_bits(), 0x7bff),
        ("cvt.rz.f16.f32 %h0, %f0; cvt.u32.u16 %x1, %h0;", 1.999f32.to_bits(), 0x3ffe),
        ("cvt.rz.f16.f32 %h0, %f0; cvt.u32.u16 %x1, %h0;", (-1.1e-7f32).to_bits(), 0x8001),
        ("cvt.rz.bf16x2.f32 %x1, %f0, 0f40000000;", 0x3f81_ffff, 0x3f81_4000),
        ("ex2.approx.ftz.f32 %f1, %f0;", 3f32.to_bits(), 8f32.to_bits()),
        ("ex2.approx.ftz.f32 %f1, %f0;", (-127f32).to_bits(), 0),
        ("rcp.approx.ftz.f32 %f1, %f0;", 4f32.to_bits(), 0.25f32.to_bits()),
        ("shfl.sync.bfly.b32 %x1, %t, 1, 31, -1; sub.s32 %x1, %x1, %t; abs.s32 %x1, %x1;", 0, 1),
        ("setp.eq.u32 %p0, %t, 5; vote.sync.any.pred %p1, %p0, -1; selp.b32 %x1, 1, 2, %p1;", 0, 1),
        ("setp.eq.u32 %p0, %t, 5; vote.sync.all.pred %p1, !%p0, -1; selp.b32 %x1, 1, 2, %p1;", 0, 2),
        ("setp.eq.u32 %p0, %t, 5; vote.sync.ballot.b32 %x1, %p0, -1;", 0, 1 << 5),
        ("st.global.u32 [%lane], 0x0102ff04; ld.global.s8 %x1, [%lane + 1];", 0, u32::MAX),
    ];
    for &(code, word, expected) in cases {
        let result = if code.contains("%f1") { "mov.b32 %x1, %f1;" } else { "" };
        let body = format!(
            "ld.global.u32 %x0, [%lane]; mov.b32 %f0, %x0; mov.u32 %x1, 0xaaaaaaaa;\n{code}\n{result}\n\
             st.global.u32 [%lane], %x1;"
        );
        let out = device.run(&kernel("", &body), 1, 32, &[word; 32]).unwrap();
        assert!(out.iter().all(|&x| x == expected), "{code} of {word:#x}: {:#x}", out[0]);
    }
    device.no_fault();
}

/// Loops and branches that lanes leave at different times, with variables of all spaces.
#[test]
fn divergent_lanes_meet_again() {
    let Some(device) = device() else { return };
    let text = kernel(
        ".global .align 4 .u32 TABLE[3] = {10, 20, 30};\n.shared .align 16 .b8 words[512];",
        "mov.u32 %x0, 0; mov.u32 %x1, %t;\n\
         next: setp.eq.u32 %p0, %x1, 0; @%p0 bra last;\n\
         add.u32 %x0, %x0, %x1; sub.u32 %x1, %x1, 1; bra.uni next;\n\
         last: shl.b32 %x2, %t, 2; mov.u32 %x3, words; add.u32 %x3, %x3, %x2;\n\
         st.shared.u32 [%x3], %x0; bar.sync 0;\n\
         mov.u64 %d0, words; cvta.shared.u64 %d1, %d0; xor.b32 %x2, %x2, 4; cvt.u64.u32 %d2, %x2;\n\
         add.s64 %d1, %d1, %d2; ld.u32 %x4, [%d1]; ld.global.u32 %x5, [TABLE+4];\n\
         add.u32 %x4, %x4, %x5; st.global.u32 [%lane], %x4;",
    );
    let sum = |n: u32| n * n.saturating_sub(1) / 2 + n;
    let expected: Vec<u32> = (0..128).map(|t| sum(t ^ 1) + 20).collect();
    assert_eq!(device.wrong_seeds(&text, 1, 128, &expected), 0);
    device.no_fault();
}

#[test]
fn missing_order_shows() {
    let Some(device) = device() else { return };
    // A thread reads what another one writes, so many bytes away: its neighbour's in the warp, or another warp's.
    let exchange = |barrier: &str, away: u32| {
        kernel(
            ".shared .align 4 .b8 words[512];",
            &format!(
                "shl.b32 %x0, %t, 2; mov.u32 %x1, words; add.u32 %x2, %x1, %x0; st.shared.u32 [%x2], %t;\n\
                 {barrier}\nxor.b32 %x0, %x0, {away}; add.u32 %x2, %x1, %x0; ld.shared.u32 %x3, [%x2];\n\
                 st.global.u32 [%lane], %x3;"
            ),
        )
    };
    for (barrier, away, threads, at_least) in [("bar.warp.sync -1;", 4, 32, 5), ("bar.sync 0;", 256, 128, 50)]
    {
        let others: Vec<u32> = (0..threads).map(|t| t ^ (away / 4)).collect();
        assert_eq!(device.wrong_seeds(&exchange(barrier, away), 1, threads, &others), 0);
        assert!(device.wrong_seeds(&exchange("", away), 1, threads, &others) >= at_least);
    }

    // Block b stores b + 1 to word b + 2; the last one to take a ticket from word 0 adds them up
    // into word 1. It may not store after it has taken the ticket.
    let total = |before: &str, after: &str| {
        kernel(
            "",
            &format!(
                "mov.u32 %x0, %ctaid.x; mad.wide.u32 %d0, %x0, 4, %out; add.u32 %x1, %x0, 1;\n\
                 setp.ne.u32 %p0, %t, 0; @%p0 bra end;\n{before}\n\
                 atom.acq_rel.gpu.global.inc.u32 %x2, [%out], 7;\n{after}\n\
                 setp.ne.u32 %p0, %x2, 7; @%p0 bra end;\nmov.u32 %x3, 0; mov.u64 %d1, %out;\n\
                 mov.u32 %x4, 8;\nnext: ld.global.cg.u32 %x5, [%d1+8]; add.u32 %x3, %x3, %x5;\n\
                 add.s64 %d1, %d1, 4; sub.u32 %x4, %x4, 1; setp.ne.u32 %p0, %x4, 0; @%p0 bra next;\n\
                 st.global.u32 [%out+4], %x3;\nend:"
            ),
        )
    };
    let store = "st.global.u32 [%d0+8], %x1;";
    let expected = [0, 36, 1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(device.wrong_seeds(&total(store, ""), 8, 32, &expected), 0);
    assert!(device.wrong_seeds(&total("", store), 8, 32, &expected) >= 30);
    device.no_fault();
}

/// cp.async lands when it is waited for, or at any moment before.
#[test]
fn copies_that_land_later() {
    let Some(device) = device() else { return };
    let text = |wait: &str| {
        kernel(
            ".shared .align 16 .b8 words[512];",
            &format!(
                "shl.b32 %x0, %t, 2; mov.u32 %x1, words; add.u32 %x2, %x1, %x0; st.global.u32 [%lane], %t;\n\
                 cp.async.ca.shared.global [%x2], [%lane], 4; cp.async.commit_group;\n\
                 cp.async.ca.shared.global.L2::128B [%x2+256], [%lane], 4, 0; cp.async.commit_group;\n\
                 {wait}\nld.shared.u32 %x3, [%x2]; st.global.u32 [%lane], %x3;"
            ),
        )
    };
    let expected: Vec<u32> = (0..32).collect();
    assert_eq!(device.wrong_seeds(&text("cp.async.wait_group 1;"), 1, 32, &expected), 0);
    assert_eq!(device.wrong_seeds(&text("cp.async.wait_all;"), 1, 32, &expected), 0);
    assert!(device.wrong_seeds(&text(""), 1, 32, &expected) >= 90);
    assert!(device.wrong_seeds(&text("cp.async.wait_group 2;"), 1, 32, &expected) >= 90);
    device.no_fault();
}

#[test]
fn faults_name_kernel_thread_and_line() {
    let at = |text: &str, words: &str| format!("line {} of its PTX for sm_75", line_of(text, words));
    let illegal = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    let failed = CUresult::CUDA_ERROR_LAUNCH_FAILED;

    let text = kernel("", "setp.ne.u32 %p0, %t, 17;\n@%p0 bra end;\nst.global.u32 [%out+8192], %t;\nend:");
    let words = ["kernel k, block 0, thread 17", &at(&text, "+8192"), "write"];
    fails(&text, 32, illegal, &words);

    let text = kernel("", "ld.global.v4.u32 {%x0, %x1, %x2, %x3}, [%lane];");
    fails(&text, 32, CUresult::CUDA_ERROR_MISALIGNED_ADDRESS, &["thread 1 ", &at(&text, ".v4"), "16 bytes"]);

    let text = kernel(
        ".shared .align 16 .b8 words[128];",
        "shl.b32 %x0, %t, 2;\nmov.u32 %x1, words;\nadd.u32 %x1, %x1, %x0;\nst.shared.u32 [%x1+4], %t;",
    );
    let words = ["thread 31 ", &at(&text, "+4], %t"), "outside of shared memory", "byte 128 of `words`"];
    fails(&text, 32, illegal, &words);

    let text = kernel("", "ld.param.u32 %x0, [pointer+4];\nld.param.u64 %d0, [pointer+8];");
    fails(&text, 32, illegal, &["of the parameters, which have 8", &at(&text, "pointer+8")]);

    let text = kernel("", "mov.u32 %x0, 0;\ndiv.u32 %x0, %t, %x0;");
    fails(&text, 32, failed, &["thread 0 ", "division by zero", &at(&text, "div.u32")]);

    // Half of the warp waits at a barrier, the other half for the warp; and the like.
    let apart =
        "setp.lt.u32 %p0, %t, 16;\n@%p0 bra other;\nbar.warp.sync -1;\nbra end;\nother:\nbar.sync 0;\nend:";
    fails(&kernel("", apart), 64, failed, &["divergent warp", "lanes 0-15 wait at the barrier"]);
    let apart = "setp.lt.u32 %p0, %t, 32;\n@%p0 bra other;\nbar.sync 0;\nbra end;\nother:\nbar.sync 0;\nend:";
    fails(&kernel("", apart), 64, failed, &["divergent barrier"]);
    let gone = "setp.gt.u32 %p0, %t, 19;\n@%p0 ret;\nshfl.sync.bfly.b32 %x0, %t, 1, 31, -1;";
    fails(&kernel("", gone), 32, failed, &["divergent warp", "lanes 20-31 have exited"]);
    let outside = "setp.gt.u32 %p0, %t, 7;\n@%p0 bra end;\nshfl.sync.idx.b32 %x0, %t, 9, 31, 0xff;\nend:";
    fails(&kernel("", outside), 32, failed, &["reads lane 9"]);
}

#[test]
fn what_is_not_known_is_not_guessed() {
    let Some(mut device) = device() else { return };
    let cases = [
        ("sin.approx.f32 %f0, %f0;", "`sin.approx.f32` is not emulated"),
        ("ld.global.L3::x.u32 %x0, [%out];", "is not emulated"),
        ("bar.sync 1;", "only `bar.sync 0`"),
        ("add.u32 %x0, %d0, 1;", "`%d0` is not of the instruction's type"),
        ("add.u32 %x0, %nothing, 1;", "`%nothing` is not understood"),
        ("mov.u64 %d0, nothing;", "`nothing` is not declared"),
        ("bra nowhere;", "no label `nowhere`"),
        ("add.u32 %x0, %x1;", "expected `,`"),
        ("add.f32 %f0, %f0, 1;", "not of the instruction's type"),
        (".local .u32 x;", "`.local` is not emulated"),
        ("call f;", "`call` is not emulated"),
        ("ld.global.u64 %x0, [%out];", "too small"),
        ("mov.u32 %x0, %clock;", "`%clock` is not understood"),
    ];
    for (code, words) in cases {
        let text = kernel("", code);
        device.faults = device.emulator.faults();
        let line = format!("kernel k cannot be run as PTX: line {}: ", line_of(&text, code));
        device.expect(device.function(&text), CUresult::CUDA_ERROR_INVALID_PTX, &[&line, words]);
    }
}

/// The read ceiling of `gfocal bench` is written by hand, with several registers in a line.
#[test]
fn hand_written_text_runs() {
    let Some(device) = device() else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/src/bench/read.ptx");
    let module = device.context.load_module(std::fs::read_to_string(path).unwrap().into()).unwrap();
    let f = module.load_function("gfocal_read").unwrap();
    let mut data = vec![7u32; 4 * 5000];
    let mut differs = device.stream.alloc_zeros::<u32>(1).unwrap();
    for (spoilt, expected) in [(7, 0), (5, 2)] {
        data[4 * 4321 + 2] = spoilt;
        let on_device = device.stream.clone_htod(&data).unwrap();
        let mut launch = device.stream.launch_builder(&f);
        launch.arg(&on_device).arg(&5000u64).arg(&7u32).arg(&mut differs);
        // SAFETY: the buffer has 5000 vectors of 16 bytes, and `differs` a word.
        unsafe { launch.launch(shape(2, 256)) }.unwrap();
        assert_eq!(device.stream.clone_dtoh(&differs).unwrap(), [expected]);
    }
    assert_eq!(f.get_attribute(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES).unwrap(), 0);
    device.no_fault();
}

/// A kernel of which one instruction is not run.
fn half_run() -> String {
    kernel("", "mov.u32 %x0, 1;\nsetp.eq.u32 %p0, %t, 99;\n@%p0 mov.u32 %x0, 2;\nst.global.u32 [%lane], %x0;")
}

/// FNV-1a, by which the emulator knows a text.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[test]
#[ignore = "another test runs it in a process of its own"]
fn prints_what_the_kernel_stores() {
    let Some(device) = device() else { return };
    let out = device.run(&half_run(), 1, 32, &[0; 32]).unwrap();
    println!("\nseen: {}", out[0]);
}

#[test]
fn what_has_run_is_written_and_a_line_can_be_changed() {
    if device().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let text = half_run();
    let run = |mutant: &str| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "prints_what_the_kernel_stores", "--ignored", "--nocapture"]);
        command.env("GFOCAL_EMULATOR_COVERAGE", folder.path()).env("GFOCAL_EMULATOR_MUTANT", mutant);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find_map(|line| line.strip_prefix("seen: ")).map(str::to_owned)
    };
    assert_eq!(run("").as_deref(), Some("1"));
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    assert!(file.file_name().unwrap().to_str().unwrap().starts_with("ptx-"), "{}", file.display());
    let skipped = line_of(&text, "@%p0 mov");
    let (first, last) = (line_of(&text, "ld.param"), line_of(&text, "ret;"));
    let expected = format!(
        "{:016x} k ran {first}-{},{}-{last} not {skipped}-{skipped}\n",
        hash(&text),
        skipped - 1,
        skipped + 1
    );
    assert_eq!(std::fs::read_to_string(file).unwrap(), expected);
    let line = line_of(&text, "mov.u32 %x0, 1;");
    assert_eq!(run(&format!("{:016x} {line} mov.u32 %x0, 5;", hash(&text))).as_deref(), Some("5"));
    assert_eq!(run(&format!("{:016x} {line} mov.u32 %x0, 5;", hash("another"))).as_deref(), Some("1"));
    assert_eq!(run(&format!("{:016x} {line} nonsense;", hash(&text))), None);
}
