//! The sample that the repository ships.

use std::path::Path;

use crate::support::*;

#[path = "../../examples/make_sample/step.rs"]
mod step;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../samples/step.safetensors");

#[test]
fn it_is_what_the_example_makes() {
    let bytes = std::fs::read(SAMPLE).unwrap();
    assert!(bytes.len() < 200_000);
    assert!(bytes == step::file(), "make it again with the example make_sample");
}

#[test]
fn both_losses() {
    let report = json("gfl", Path::new(SAMPLE), "");
    let (qfl, dfl) = (&report["qfl"], &report["dfl"]);
    assert_eq!((&qfl["positives"], &dfl["positives"]), (&24.into(), &96.into()));
    assert_eq!((qfl["avg_factor"].as_f64(), dfl["avg_factor"].as_f64()), (Some(24.0), Some(47.203125)));
    assert!(qfl["status"]["first_bad_row"].is_null() && dfl["status"]["first_bad_row"].is_null());
    let text = cpu("gfl", Path::new(SAMPLE), "").ok().stdout;
    assert!(text.contains("\nQFL ") && text.contains("\nDFL ") && text.contains("\nsum "), "{text}");
}
