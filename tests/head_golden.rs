//! Shows that the losses and gradients of the head loss are those of mmdetection's
//! `GFLHead.loss_by_feat`: every head in tests/golden (see its README.md), in each storage type and
//! each form of memory, with the anchor points on a grid and given.

use gfocal::head::HeadLoss;
use gfocal::{bf16, f16};
use support::head::scenes::{GOLDEN, Golden, golden};
use support::head::{Form, PointsAt, check, cpu, expect};
use support::in_types;
use support::tolerance::{check_golden_double, check_golden_single};
use support::{Pass, Stored};

fn heads() -> Vec<Golden> {
    let folder = std::fs::read_dir(support::root().join("tests/golden")).expect("tests/golden");
    let names = folder.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    assert_eq!(names.filter(|name| name.starts_with("head_")).count(), GOLDEN.len(), "all are read");
    GOLDEN.map(golden).into()
}

/// The same head with the anchor points given: for all images, or for each.
fn with_points(golden: &Golden) -> [Golden; 3] {
    [0, 1, 2].map(|kind| {
        let mut scene = golden.scene.clone();
        for (level, centres) in scene.levels.iter_mut().zip(&golden.centres) {
            match kind {
                0 => {}
                1 => level.points = PointsAt::Explicit(centres[..2 * level.positions()].to_vec()),
                _ => level.points = PointsAt::Explicit(centres.clone()),
            }
        }
        Golden {
            scene,
            losses: golden.losses.clone(),
            grads: golden.grads.clone(),
            centres: vec![],
            ..*golden
        }
    })
}

#[test]
fn cpu_in_f64_and_f32() {
    for golden in heads() {
        for golden in with_points(&golden) {
            for form in Form::ALL {
                let what = format!("{} in {form:?}", golden.name);
                let got = cpu::run::<f64>(&golden.scene, form, Pass::ForwardBackward).expect("a legal call");
                check_golden_double(&format!("{what}, losses"), &got.losses, &golden.losses);
                for (got, want) in got.grads.iter().flatten().zip(golden.grads.iter().flatten()) {
                    check_golden_double(&format!("{what}, gradients"), got, want);
                }
                let got = cpu::run::<f32>(&golden.scene, form, Pass::ForwardBackward).expect("a legal call");
                check_golden_single(&format!("{what}, losses"), &got.losses, &golden.losses);
                for (got, want) in got.grads.iter().flatten().zip(golden.grads.iter().flatten()) {
                    check_golden_single(&format!("{what}, gradients"), got, want);
                }
                let normalisers = cpu::normalisers::<f64>(&golden.scene, form).expect("a legal call");
                assert_eq!(normalisers.positives, golden.positives, "{what}: N");
            }
        }
    }
}

/// The reference, which other tests compare with, agrees with mmdetection too; and the CPU path
/// with it on what storage makes of these logits.
fn in_type<T: Stored>(golden: &Golden) {
    let want = expect(&golden.scene.stored_as::<T>());
    for form in Form::ALL {
        for pass in [Pass::Forward, Pass::ForwardBackward] {
            let got = cpu::run::<T>(&golden.scene, form, pass).expect("a legal call");
            check(&format!("{} in {form:?}", golden.name), pass, &got, &want);
        }
    }
}

#[test]
fn cpu_in_all_types() {
    for golden in heads() {
        let want = expect(&golden.scene);
        let losses: Vec<f64> = want.losses.iter().map(|want| want.expect("a loss").value).collect();
        check_golden_double("reference, losses", &losses, &golden.losses);
        for (want, golden) in want.grads.iter().flatten().zip(golden.grads.iter().flatten()) {
            let grads: Vec<f64> = want.iter().map(|want| want.expect("a gradient").value).collect();
            check_golden_double("reference, gradients", &grads, golden);
        }
        in_types!(f64, f32, f16, bf16: in_type(&golden));
    }
}

#[test]
fn the_default_is_mmdetections() {
    let [golden, ..] = GOLDEN.map(golden);
    assert_eq!(golden.scene.settings.head().expect("legal options"), HeadLoss::default());
}
