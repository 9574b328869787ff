//! `gfocal info`.

use crate::support::*;

#[test]
fn it_says_what_there_is() {
    let run: Run = command().arg("info").output().unwrap().into();
    let text = run.ok().stdout;
    for line in ["gfocal   0", "kernels  ", "driver   ", "devices  ", "auto     chooses c"] {
        assert!(text.contains(line), "{text}");
    }
    assert!(text.contains(&gfocal::cuda::provenance().to_string()), "{text}");
}

#[test]
fn in_json() {
    let run: Run = command().args(["info", "--json"]).output().unwrap().into();
    let info: serde_json::Value = serde_json::from_str(&run.ok().stdout).unwrap();
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["kernels"]["nvrtc_release"], gfocal::cuda::provenance().nvrtc_release());
    assert!(info["devices"].is_array());
    let usable = info["devices"].as_array().unwrap().iter().any(|device| device["error"].is_null());
    assert_eq!(info["auto"]["device"].as_str().unwrap().starts_with("cuda:"), usable);
    assert_eq!(info["driver"]["cuda_version"].is_null(), !info["driver"]["error"].is_null());
}
