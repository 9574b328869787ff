//! The errors of each formulation against f64, with the GPU's special functions exact and as wrong as
//! NVIDIA's manual allows, measured through the public CUDA calls on the emulator: kernels/errors.md
//! is this table. It is made of the PTX, at both compute capabilities that there are variants for, and
//! no PTX may exceed a number of it. The C++ sources, compiled for the host, are rounded at other places
//! (NVRTC contracts products and sums, the host's compiler does not), so their numbers may be larger by
//! [`CONTRACTION`]. The file says how it is made anew.
//!
//! In a test binary of its own: the setting of the special functions is the process's.

use std::fmt::Write;
use std::path::PathBuf;

use gfocal::{Reduction, bf16, f16};
use gfocal_emulator::Sign;
use support::cuda::Layout;
use support::gpu::{Gpu, OnDevice, gpu};
use support::random::Random;
use support::tolerance::Want;
use support::{Case, Pass, cuda, expect, reference};

/// Of the special functions: exact, all too large, all too small, and then the mixtures, which only the
/// column `worst` has.
fn settings() -> Vec<[Sign; 3]> {
    let mut all = vec![[Sign::None; 3], [Sign::Plus; 3], [Sign::Minus; 3]];
    for mixture in 1..7 {
        all.push([1, 2, 4].map(|bit| if mixture & bit == 0 { Sign::Minus } else { Sign::Plus }));
    }
    all
}

/// Logits, for QFL; spreads of a row from its least to its largest logit, for DFL.
const LOGITS: [(f64, f64); 5] = [(-88.0, -20.0), (-20.0, -2.0), (-2.0, 2.0), (2.0, 20.0), (20.0, 88.0)];
/// The same for probabilities.
const PROBABILITIES: [(f64, f64); 4] = [(0.0, 1e-6), (1e-6, 1e-2), (1e-2, 0.5), (0.5, 1.0)];
const SPREADS: [(f64, f64); 3] = [(0.0, 2.0), (2.0, 20.0), (20.0, 88.0)];
/// Logits of a range at which neighbours are alike, and rows of a range of the others.
const ALIKE: usize = 24;
const ROWS: usize = 96;

/// The calls that one line of the table is measured with.
struct Line {
    name: &'static str,
    range: (f64, f64),
    calls: Vec<Call>,
}

enum Call {
    /// A loss. For QFL only logits within the range count: others are there to be neighbours.
    Loss(Box<Case>),
    /// Expectations of rows of logits, and their gradients.
    Integral(Vec<f64>, usize),
}

fn lines() -> Vec<Line> {
    let mut lines = Vec::new();
    for range in LOGITS {
        let calls = alike(range, 2.0);
        lines.push(Line { name: "QFL, background, neighbours alike", range, calls });
    }
    for range in LOGITS {
        lines.push(Line { name: "BCE, background, neighbours alike", range, calls: alike(range, 0.0) });
    }
    for range in LOGITS {
        let calls = both(&background(range, true));
        lines.push(Line { name: "QFL, background, neighbours of both signs", range, calls });
    }
    for range in LOGITS {
        lines.push(Line { name: "QFL, soft target", range, calls: both(&soft(range)) });
    }
    for range in LOGITS {
        let calls = both(&background(range, false).with_beta(0.0));
        lines.push(Line { name: "BCE, background", range, calls });
    }
    for range in LOGITS {
        lines.push(Line { name: "BCE, soft target", range, calls: both(&soft(range).with_beta(0.0)) });
    }
    for range in LOGITS {
        let of_background = weighted(background(range, false));
        let calls = both(&of_background).into_iter().chain(both(&of_background.with_beta(0.0)));
        lines.push(Line { name: "QFL and BCE, weighted background", range, calls: calls.collect() });
    }
    for range in PROBABILITIES {
        let mut calls = Vec::new();
        for beta in [0.0, 1.5, 2.0] {
            for case in [background(range, false), soft(range)] {
                let case = case.with_beta(beta).with_elements(|elements| elements.activated = true);
                calls.extend(both(&case));
            }
        }
        lines.push(Line { name: "QFL of probabilities", range, calls });
    }
    let betas = [
        (0.5, "QFL, β 0.5, background", "QFL, β 0.5, soft target"),
        (1.0, "QFL, β 1, background", "QFL, β 1, soft target"),
        (1.5, "QFL, β 1.5, background", "QFL, β 1.5, soft target"),
        (3.0, "QFL, β 3, background", "QFL, β 3, soft target"),
    ];
    for (beta, of_background, of_soft) in betas {
        for range in LOGITS {
            let calls = both(&background(range, false).with_beta(beta));
            lines.push(Line { name: of_background, range, calls });
        }
        for range in LOGITS {
            lines.push(Line { name: of_soft, range, calls: both(&soft(range).with_beta(beta)) });
        }
    }
    for (bins, name) in [(16, "DFL, 16 bins"), (17, "DFL, 17 bins"), (33, "DFL, 33 bins")] {
        for range in SPREADS {
            let mut random = Random::new(bins as u64);
            let target: Vec<f32> = (0..ROWS).map(|_| random.between(0.0, (bins - 1) as f64) as f32).collect();
            lines.push(Line {
                name,
                range,
                calls: both(&Case::dfl([ROWS, bins], &spread(range, bins), &target)),
            });
        }
    }
    for range in SPREADS {
        let calls = vec![Call::Integral(spread(range, 17), 17), Call::Integral(spread(range, 33), 33)];
        lines.push(Line { name: "integral", range, calls });
    }
    lines
}

/// Each logit alone with its likes, so that a warp takes the way that is theirs.
fn alike((low, high): (f64, f64), beta: f64) -> Vec<Call> {
    let mut random = Random::new(1);
    let mut calls = Vec::new();
    for _ in 0..ALIKE {
        let logits = vec![random.between(low, high); 64];
        calls.extend(both(&Case::sparse([4, 16], &logits, &[16; 4], &[0.0; 4]).with_beta(beta)));
    }
    calls
}

/// One class, so that the loss of a row is that of a logit.
fn background((low, high): (f64, f64), with_others: bool) -> Case {
    let mut random = Random::new(2);
    let logits: Vec<f64> = (0..2 * ROWS)
        .map(|i| if with_others && i % 2 == 1 { 100.0 } else { random.between(low, high) })
        .collect();
    Case::sparse([2 * ROWS, 1], &logits, &[1; 2 * ROWS], &[0.0; 2 * ROWS])
}

/// With weights that round.
fn weighted(case: Case) -> Case {
    let mut random = Random::new(5);
    let mut weights = |count: usize| (0..count).map(|_| random.between(0.5, 2.0) as f32).collect();
    let (of_elements, of_classes) = (weights(case.logits.len()), weights(case.shape[1]));
    case.with_elements(|elements| {
        elements.class_weights = Some(of_classes);
        elements.element_weights = Some(of_elements);
        elements.alpha = Some(0.25);
    })
}

fn soft((low, high): (f64, f64)) -> Case {
    let mut random = Random::new(3);
    let logits = random.many(2 * ROWS, low, high);
    let target: Vec<f32> = (0..2 * ROWS).map(|_| random.between(1e-3, 1.0) as f32).collect();
    Case::dense([2 * ROWS, 1], &logits, &target)
}

/// Rows whose logits lie within a spread, the largest anywhere.
fn spread((low, high): (f64, f64), bins: usize) -> Vec<f64> {
    let mut random = Random::new(4);
    let mut logits = Vec::new();
    for _ in 0..ROWS {
        let width = random.between(low, high);
        logits.extend(random.many(bins, -width / 2.0, width / 2.0));
    }
    logits
}

/// The losses of rows, and the sum: other kernels.
fn both(case: &Case) -> Vec<Call> {
    let reduced = |reduction| Call::Loss(Box::new(case.clone().reduced(reduction)));
    vec![reduced(Reduction::None), reduced(Reduction::Sum)]
}

/// The worst errors of a line: relative, but of 16-bit gradients in units in the last place.
#[derive(Clone, Copy, Default)]
struct Worst {
    /// Of a row.
    loss: f64,
    sum: f64,
    grad: f64,
}

impl Worst {
    fn add(&mut self, other: Worst) {
        raise(&mut self.loss, other.loss);
        raise(&mut self.sum, other.sum);
        raise(&mut self.grad, other.grad);
    }
}

/// NaN stays.
fn raise(worst: &mut f64, value: f64) {
    if value > *worst || value.is_nan() {
        *worst = value;
    }
}

fn measure<T: OnDevice>(gpu: &Gpu, line: &Line) -> Worst {
    let mut worst = Worst::default();
    for call in &line.calls {
        worst.add(match call {
            Call::Loss(case) => loss::<T>(gpu, case, line.range),
            Call::Integral(logits, bins) => integral::<T>(gpu, logits, *bins),
        });
    }
    worst
}

fn loss<T: OnDevice>(gpu: &Gpu, case: &Case, (low, high): (f64, f64)) -> Worst {
    let is_distribution = matches!(case.loss, support::case::Loss::Dfl { .. });
    let counts = |x: &f64| is_distribution || (low..=high).contains(x);
    let want = expect(&case.stored_as::<T>());
    let mut worst = Worst::default();
    // The loss alone is computed by other kernels.
    for pass in [Pass::Forward, Pass::ForwardBackward] {
        let got = cuda::run::<T>(gpu, case, pass, &Layout::ALIGNED).expect("a legal call");
        // A loss counts if all logits that it sums do.
        let per_loss = case.logits.len() / got.loss.len();
        for ((logits, got), want) in case.logits.chunks(per_loss).zip(&got.loss).zip(&want.loss) {
            if logits.iter().all(counts) {
                let error = want.expect("it is specified").error(*got);
                let is_sum = case.options.reduction == Reduction::Sum;
                raise(if is_sum { &mut worst.sum } else { &mut worst.loss }, error);
            }
        }
        let elements = case.logits.iter().zip(&got.grad).zip(&want.grad);
        for ((_, got), want) in elements.filter(|((x, _), _)| counts(x)) {
            raise(&mut worst.grad, want.expect("it is specified").error(*got));
        }
    }
    worst
}

fn integral<T: OnDevice>(gpu: &Gpu, logits: &[f64], bins: usize) -> Worst {
    let stored: Vec<T> = logits.iter().map(|&x| T::from_f64(x)).collect();
    let upstream = vec![1.0; stored.len() / bins];
    let (expectations, grad) =
        cuda::integral::<T>(gpu, &stored, [upstream.len(), bins], &upstream, &Layout::ALIGNED)
            .expect("a legal call");
    let exact: Vec<f64> = stored.iter().map(|x| x.to_f64()).collect();
    let mut worst = Worst::default();
    for ((row, got), grad) in exact.chunks(bins).zip(expectations).zip(grad.chunks(bins)) {
        let (expectation, slopes) = reference::integral(row);
        raise(&mut worst.loss, Want::new(expectation, 1.0, true).error(got));
        for (&got, slope) in grad.iter().zip(slopes) {
            raise(&mut worst.grad, Want::new(slope, 1.0, true).error(got));
        }
    }
    worst
}

/// Of numbers: in f32 the loss for each setting and at worst, the sum at worst, the gradient as the loss;
/// in 16 bits loss, sum and gradient at worst, without mixtures.
const COLUMNS: usize = 12;

fn table(gpu: &Gpu) -> Vec<(String, [f64; COLUMNS])> {
    let emulator = gpu.emulator.expect("only the emulator's special functions can be set");
    let lines = lines();
    let mut numbers = vec![[0.0; COLUMNS]; lines.len()];
    for (i, [exp2, log2, reciprocal]) in settings().into_iter().enumerate() {
        emulator.set_special_errors(exp2, log2, reciprocal);
        for (line, numbers) in lines.iter().zip(&mut numbers) {
            let single = measure::<f32>(gpu, line);
            raise(&mut numbers[3], single.loss);
            raise(&mut numbers[4], single.sum);
            raise(&mut numbers[8], single.grad);
            if i < 3 {
                (numbers[i], numbers[5 + i]) = (single.loss, single.grad);
                for half in [measure::<f16>(gpu, line), measure::<bf16>(gpu, line)] {
                    raise(&mut numbers[9], half.loss);
                    raise(&mut numbers[10], half.sum);
                    raise(&mut numbers[11], half.grad);
                }
            }
        }
    }
    emulator.set_special_errors(Sign::None, Sign::None, Sign::None);
    let name = |line: &Line| format!("{} | {} to {}", line.name, line.range.0, line.range.1);
    lines.iter().map(name).zip(numbers).collect()
}

const ABOUT: &str = "\
# Errors of the formulations

Measured through the public CUDA calls on the emulator, which runs the committed PTX, against the same formulas
in f64 on the same stored logits; the worse of compute capability 7.5 and 9.0, and of a loss alone and one with
its gradient. `0`, `+` and `−`: with `ex2.approx`, `lg2.approx` and `rcp.approx` exact, all too large and all too
small by what NVIDIA's manual allows (2 units in the last place, 2^-22, 1 unit); `worst` has their mixtures
too. `tests/error_table.rs` makes this file, and fails if the PTX exceeds a number:

    export GFOCAL_EMULATOR_PTX=1
    GFOCAL_WRITE_ERRORS=new GFOCAL_EMULATOR_CC=75 cargo test --test error_table
    GFOCAL_WRITE_ERRORS=raise GFOCAL_EMULATOR_CC=90 cargo test --test error_table

Loss (for the integral: expectation) and gradient in f32 are relative errors, beyond what the contract allows in
absolute terms: 2e-7 where a target or an expectation is subtracted, 1e-36 for underflow. In 16 bits (the worse
of f16 and bf16, for `0`, `+` and `−`) the loss is f32 and its error likewise, and the gradient's error is in
units in the last place from the correctly rounded truth. The contract: losses of rows and gradients 1e-5, sums
2e-6, 16-bit gradients 1. The range is that of the logit, or of the probability, for QFL, and that from the least to
the largest logit of a row for the others.

`sum` is the sum at worst: for neighbours alike of 64 times the same logit, so that no error averages out; `-`
where there is none. There e^(3x) has three times the rounding of x·log2(e). In f32 that rounding is taken out;
in 16 bits it differs between the lanes of a vector, so that it averages out.

| formulation | range | loss 0 | + | − | worst | sum | gradient 0 | + | − | worst | 16-bit loss | 16-bit sum | 16-bit gradient |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
";

/// Two digits, rounded up; what has no more stays.
fn up(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let step = 10f64.powi(value.log10().floor() as i32 - 1);
    let rounded = [value, value + step].map(|value| format!("{value:.1e}"));
    rounded
        .into_iter()
        .find(|text| text.parse().is_ok_and(|above: f64| above >= value))
        .expect("one is above")
}

fn markdown(table: &[(String, [f64; COLUMNS])]) -> String {
    let mut text = ABOUT.to_owned();
    for (name, numbers) in table {
        let cell = |(i, &number): (usize, &f64)| {
            if number == 0.0 && [4, 10].contains(&i) { "-".to_owned() } else { up(number) }
        };
        let numbers: Vec<String> = numbers.iter().enumerate().map(cell).collect();
        writeln!(text, "| {name} | {} |", numbers.join(" | ")).expect("a string takes it");
    }
    text
}

/// The lines of a table that [`markdown`] has written.
fn parse(text: &str) -> Vec<(String, Vec<f64>)> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let cells = lines.map(|line| line.split(" | ").collect::<Vec<_>>()).skip(2);
    let number = |cell: &&str| match *cell {
        "-" => 0.0,
        cell => cell.parse().unwrap_or_else(|_| panic!("{cell:?} is not a number")),
    };
    cells.map(|cells| (cells[..2].join(" | "), cells[2..].iter().map(number).collect())).collect()
}

/// What of a relative error the host's compiler may add, which contracts nothing: two units in the last place.
const CONTRACTION: f64 = 2.4e-7;

/// What the contract says of a column.
fn contract(column: usize) -> f64 {
    match column {
        4 | 10 => 2e-6,
        11 => 1.0,
        _ => 1e-5,
    }
}

#[test]
fn the_table_is_not_exceeded() {
    let Some(gpu) = gpu() else { return };
    if gpu.emulator.is_none() {
        return eprintln!("a GPU has special functions of its own: nothing to set");
    }
    let on_ptx = std::env::var("GFOCAL_EMULATOR_PTX").is_ok_and(|value| !["", "0"].contains(&&*value));
    let path: PathBuf = support::root().join("kernels/errors.md");
    let read = || std::fs::read_to_string(&path).expect("kernels/errors.md is there");
    let mut found = table(&gpu);
    for (name, numbers) in &found {
        for (i, &number) in numbers.iter().enumerate() {
            assert!(number <= contract(i), "{name}, column {i}: {number:e} breaks the contract");
        }
    }
    if let Ok(how) = std::env::var("GFOCAL_WRITE_ERRORS") {
        assert!(on_ptx, "kernels/errors.md is about the PTX: set GFOCAL_EMULATOR_PTX=1, too");
        assert!(["new", "raise"].contains(&&*how), "GFOCAL_WRITE_ERRORS is {how:?}, not new or raise");
        for ((_, found), (_, written)) in found.iter_mut().zip(parse(&read())).filter(|_| how == "raise") {
            found.iter_mut().zip(written).for_each(|(found, written)| raise(found, written));
        }
        std::fs::write(&path, markdown(&found)).expect("kernels/errors.md can be written");
    }
    let text = read();
    let remedy = "if that is meant, make kernels/errors.md anew, as it says";
    assert!(text.starts_with(ABOUT), "the words of kernels/errors.md are not this test's; {remedy}");
    let written = parse(&text);
    let names = |table: Vec<&String>| table.into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(found.iter().map(|line| &line.0).collect()),
        names(written.iter().map(|line| &line.0).collect()),
        "kernels/errors.md has other lines; {remedy}"
    );
    for ((name, found), (_, written)) in found.iter().zip(&written) {
        assert_eq!(written.len(), COLUMNS, "{name}");
        for (i, (found, &written)) in found.iter().zip(written).enumerate() {
            let most = match i {
                _ if on_ptx => written,
                11 => contract(i),
                _ => written + CONTRACTION,
            };
            assert!(*found <= most, "{name}, column {i}: {found:e} is more than {most:e}; {remedy}");
        }
    }
}

#[test]
fn numbers_are_rounded_up() {
    assert_eq!([0.0, 1.0, 1.01e-7, 9.99e-8].map(up), ["0", "1.0e0", "1.1e-7", "1.0e-7"]);
    assert_eq!([3.3e-7, 4.6e-7, 2.9e-7].map(up), ["3.3e-7", "4.6e-7", "2.9e-7"]);
}
