//! What the tests share: a case and its options, the two backends, the reference, tolerances.

#![allow(missing_docs, reason = "for the tests alone")]

pub mod assign;
pub mod case;
pub mod cpu;
pub mod cuda;
pub mod decode;
pub mod gpu;
pub mod head;
pub mod plan;
pub mod random;
pub mod reference;
pub mod tolerance;
mod types;
pub mod vectors;

pub use case::{Case, Loss, Options, Outcome, Pass};
pub use gpu::{Buffer, Gpu, gpu};
pub use reference::{Expected, expect};
pub use tolerance::{Number, Stored, check_elements, check_reduced};

/// The checkout: where cargo says at run time, or the GPU kit's script, else where it was compiled.
pub fn root() -> std::path::PathBuf {
    match std::env::var_os("CARGO_MANIFEST_DIR") {
        Some(root) => root.into(),
        None => concat!(env!("CARGO_MANIFEST_DIR"), "/../..").into(),
    }
}

/// Background logits that are not confident, which are those from -2 down: large, small of both signs, tiny. Nor is
/// -inf.
pub const NOT_CONFIDENT: [f64; 5] = [7.5, 0.75, -0.75, -1e-3, 1e-3];

/// The largest number of a type, but for a hundredth or less.
pub fn nearly_most<T: Stored>() -> f64 {
    if T::NAME == "f16" { 65000.0 } else { 3.38e38 }
}

/// A logit of a small gradient. Not a confident one, whose series has 3 times the scale on the way.
pub const QUIET: f64 = -1.0;
/// A background logit of the largest gradient there is, a little more than what it is multiplied by.
pub const LOUD: f64 = 2.0;

/// Asserts that a gradient is not finite, and no other, and that the flag says so.
#[track_caller]
pub fn check_alone<T: Stored>(what: &str, grad: &[T], at: usize, found_inf: f32) {
    let bad: Vec<usize> = (0..grad.len()).filter(|&i| !grad[i].to_f64().is_finite()).collect();
    assert_eq!(bad, [at], "{what} in {}: not finite", T::NAME);
    assert_eq!(found_inf, 1.0, "{what} in {}: found_inf for {at}", T::NAME);
}

/// Compares what a backend gave with the reference.
#[track_caller]
pub fn check<T: Stored>(what: &str, case: &Case, pass: Pass, got: &Outcome<T>) {
    check_with(what, case, pass, got, &expect(&case.stored_as::<T>()));
}

/// [`check`], with the reference's results for the case as it is stored.
#[track_caller]
pub fn check_with<T: Stored>(what: &str, case: &Case, pass: Pass, got: &Outcome<T>, want: &Expected) {
    let what = format!("{what} in {}, {pass:?}", T::NAME);
    if pass != Pass::Backward {
        let what = format!("{what}, loss");
        match case.options.reduction {
            gfocal::Reduction::None => check_elements(&what, &got.loss, &want.loss),
            _ => check_reduced(&what, got.loss[0], &want.loss[0].expect("a reduced loss is specified")),
        }
    }
    if pass != Pass::Forward {
        check_elements(&format!("{what}, gradient"), &got.grad, &want.grad);
    }
    // Only a gradient that is stored and not finite sets the flag.
    let raised = got.grad.iter().any(|grad| !grad.to_f64().is_finite());
    let flag = if raised { 1.0 } else { Outcome::<T>::FLAG_BEFORE };
    assert_eq!(got.found_inf, flag, "{what}: found_inf");
    assert_eq!(got.status, want.status, "{what}: status");
}

/// A legal case on the CPU in `T`, each pass compared with the reference.
#[track_caller]
pub fn check_cpu<T: Stored>(case: &Case) {
    let want = expect(&case.stored_as::<T>());
    for pass in Pass::ALL {
        let got = cpu::run::<T>(case, pass).expect("a legal call");
        check_with("on the CPU", case, pass, &got, &want);
    }
}

/// A legal case on CUDA in `T`, each pass compared with the reference.
#[track_caller]
pub fn check_cuda<T: gpu::OnDevice>(gpu: &Gpu, case: &Case, layout: &cuda::Layout) {
    let want = expect(&case.stored_as::<T>());
    for pass in Pass::ALL {
        let got = cuda::run::<T>(gpu, case, pass, layout).expect("a legal call");
        check_with("on CUDA", case, pass, &got, &want);
    }
}
