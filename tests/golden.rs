//! Shows that losses and gradients are mmdetection's: every vector of theirs in tests/golden (see its
//! README.md), on the CPU in f64 and f32, and on CUDA in f32 and, where the inputs are exact in
//! them, f16 and bf16; each reduction; aligned buffers and misaligned views.

use std::path::Path;

use gfocal::{AvgPolicy, Reduction, bf16, f16};
use support::cuda::Layout;
use support::gpu::OnDevice;
use support::tolerance::{Want, check_golden, check_reduced};
use support::vectors::Vectors;
use support::{Case, Gpu, Outcome, Pass, Stored, cpu, cuda, gpu};

struct Golden {
    name: String,
    case: Case,
    avg_factor: f64,
    exact_in_half: bool,
    loss_none: Vec<f64>,
    grad_sum: Vec<f64>,
    expectation: Option<Vec<f64>>,
    /// With the reduction that gives each.
    reduced: [(Reduction, f64); 3],
}

fn load(path: &Path) -> Golden {
    let vectors = Vectors::open(path);
    let (about, f32s) = (&vectors.case, |name| vectors.f32s(name));
    let activated = about["activated"].as_bool().unwrap_or(false);
    let input = if activated { "probs" } else { "logits" };
    let shape: [usize; 2] = vectors.shape(input).try_into().expect("two axes");
    let logits: Vec<f64> = f32s(input).into_iter().map(f64::from).collect();
    let beta = || about["beta"].as_f64().expect("a beta");
    let case = match about["op"].as_str().expect("an op") {
        "qfl" => Case::sparse(shape, &logits, &vectors.i64s("labels"), &f32s("quality")).with_beta(beta()),
        "qfl_dense" => Case::dense(shape, &logits, &f32s("target")).with_beta(beta()),
        "dfl" => Case::dfl(shape, &logits, &f32s("target")),
        other => panic!("{other} is not a known op"),
    };
    let avg_factor = about["avg_factor"].as_f64().expect("an average factor");
    let one = |name| vectors.f64s(name)[0];
    Golden {
        name: path.file_stem().expect("a name").to_string_lossy().into_owned(),
        case: case.with(|options| {
            options.weight = vectors.has("weight").then(|| f32s("weight"));
            options.elements.activated = activated;
        }),
        avg_factor,
        exact_in_half: about["exact_in_half"].as_bool().expect("a flag"),
        loss_none: vectors.f64s("loss_none"),
        grad_sum: vectors.f64s("grad_sum"),
        expectation: vectors.has("expectation").then(|| vectors.f64s("expectation")),
        reduced: [
            (Reduction::Sum, one("loss_sum")),
            (Reduction::Mean, one("loss_mean")),
            (Reduction::MeanBy { avg_factor, policy: AvgPolicy::Eps }, one("loss_avg")),
        ],
    }
}

/// All of QFL and DFL. The number is asserted, so that no file is forgotten.
fn all() -> Vec<Golden> {
    let folder = support::root().join("tests/golden");
    let files = std::fs::read_dir(folder).expect("tests/golden").map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    let is_other = |name: &str| name.starts_with("head_") || name.starts_with("fcos_");
    paths.retain(|path| !path.file_stem().is_some_and(|name| is_other(&name.to_string_lossy())));
    paths.sort();
    let golden: Vec<Golden> = paths.iter().map(|path| load(path)).collect();
    let count = |prefix| golden.iter().filter(|golden| golden.name.starts_with(prefix)).count();
    assert_eq!((count("qfl_"), count("dfl_"), golden.len()), (17, 9, 26), "tests/golden is not complete");
    assert_eq!(golden.iter().filter(|golden| golden.exact_in_half).count(), 20, "cases for 16-bit types");
    golden
}

/// Compares one storage type on one backend, and counts the comparisons.
fn compare<T: Stored>(
    golden: &Golden,
    backend: &str,
    run: impl Fn(&Case, Pass) -> Outcome<T>,
    integral: impl Fn(&Case) -> (Vec<T::Loss>, Vec<T>),
) {
    let what = |part: &str| format!("{} on {backend} in {}: {part}", golden.name, T::NAME);
    let rows = golden.case.shape[0];
    let weight =
        |n: usize| golden.case.options.weight.as_ref().map_or(1.0, |weight| f64::from(weight[n]).abs());
    let of_element = |i: usize| weight(i / golden.case.shape[1]);

    let got = run(&golden.case.clone().reduced(Reduction::None), Pass::ForwardBackward);
    check_golden(&what("loss_none"), &got.loss, &golden.loss_none, weight);
    check_golden(&what("its gradient"), &got.grad, &golden.grad_sum, of_element);
    assert!(got.status.is_ok(), "{}: {:?}", what("status"), got.status);

    for (reduction, value) in golden.reduced {
        let divisor = match reduction {
            Reduction::Mean => rows as f64,
            Reduction::MeanBy { .. } => golden.avg_factor + 2f64.powi(-23),
            _ => 1.0,
        };
        let case = golden.case.clone().reduced(reduction);
        let most = (0..rows).map(weight).fold(0.0, f64::max);
        let want = Want { value, magnitude: value, scale: most / divisor, cancels: true };
        let grad: Vec<f64> = golden.grad_sum.iter().map(|g| g / divisor).collect();
        for pass in Pass::ALL {
            let got = run(&case, pass);
            if pass != Pass::Backward {
                // The golden results have the precision of f32 here: see tests/golden/README.md.
                let single = gfocal::Element::to_f64(got.loss[0]) as f32;
                check_reduced(&what(&format!("loss, {reduction:?}, {pass:?}")), single, &want);
            }
            if pass != Pass::Forward {
                let what = what(&format!("gradient, {reduction:?}, {pass:?}"));
                check_golden(&what, &got.grad, &grad, |i| of_element(i) / divisor);
            }
        }
    }
    if let Some(expectation) = &golden.expectation {
        check_golden(&what("expectation"), &integral(&golden.case).0, expectation, |_| 1.0);
    }
}

fn on_cpu<T: Stored>(golden: &Golden) {
    let integral = |case: &Case| {
        cpu::integral(&case.logits_as(), case.shape, &vec![1.0; case.shape[0]]).expect("a legal call")
    };
    compare::<T>(golden, "the CPU", |case, pass| cpu::run(case, pass).expect("a legal call"), integral);
}

fn on_cuda<T: OnDevice>(gpu: &Gpu, golden: &Golden) {
    for layout in [Layout::ALIGNED, Layout::MISALIGNED] {
        let integral = |case: &Case| {
            cuda::integral::<T>(gpu, &case.logits_as(), case.shape, &vec![1.0; case.shape[0]], &layout)
                .expect("a legal call")
        };
        compare::<T>(
            golden,
            "CUDA",
            |case, pass| cuda::run(gpu, case, pass, &layout).expect("a legal call"),
            integral,
        );
    }
}

#[test]
fn cpu_in_f64_and_f32() {
    for golden in all() {
        on_cpu::<f64>(&golden);
        on_cpu::<f32>(&golden);
    }
}

#[test]
fn cpu_in_f16_and_bf16() {
    for golden in all().iter().filter(|golden| golden.exact_in_half) {
        on_cpu::<f16>(golden);
        on_cpu::<bf16>(golden);
    }
}

#[test]
fn cuda_in_f32() {
    let Some(gpu) = gpu() else { return };
    for golden in all() {
        on_cuda::<f32>(&gpu, &golden);
    }
}

#[test]
fn cuda_in_f16_and_bf16() {
    let Some(gpu) = gpu() else { return };
    for golden in all().iter().filter(|golden| golden.exact_in_half) {
        on_cuda::<f16>(&gpu, golden);
        on_cuda::<bf16>(&gpu, golden);
    }
}
