//! Gives the crate an `OUT_DIR`, where the compiled driver is kept between runs.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
