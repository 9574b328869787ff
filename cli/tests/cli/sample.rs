//! The sample that the repository ships.

use std::path::Path;

use crate::support::*;

#[path = "../../examples/make_sample/head.rs"]
mod head;
#[path = "../../examples/make_sample/random.rs"]
mod random;
#[path = "../../examples/make_sample/step.rs"]
mod step;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../samples/step.safetensors");
const HEAD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../samples/head.safetensors");

#[test]
fn they_are_what_the_example_makes() {
    for (path, made) in [(SAMPLE, step::file()), (HEAD, head::file())] {
        let bytes = std::fs::read(path).unwrap();
        assert!(bytes.len() < 200_000);
        assert!(bytes == made, "make {path} again with the example make_sample");
    }
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
