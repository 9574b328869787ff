//! The GPU kit's script from start to end on the emulator, with this command. The tests of the library, which
//! the kit has in a program of its own, are not run once more: a script says which it was asked for.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::cuda::{emulated, with_driver};
use crate::support::*;

#[test]
fn a_lease_on_the_emulator() {
    let Some(gfocal) = with_driver() else { return };
    if !emulated() {
        return; // that would be a lease indeed
    }
    let folder = Folder::new();
    let (kit, out) = (folder.path("kit"), folder.path("out"));
    fs::create_dir_all(kit.join("bin")).unwrap();
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask/src/gpu_kit");
    for script in ["run.sh", "items.sh", "summary.sh"] {
        fs::copy(scripts.join(script), kit.join(script)).unwrap();
    }
    symlink(gfocal.get_program(), kit.join("bin/gfocal")).unwrap();
    fs::write(kit.join("bin/kit"), "#!/bin/sh\necho \"$GFOCAL_REPEATS repeats of $*\"\n").unwrap();
    fs::set_permissions(kit.join("bin/kit"), fs::Permissions::from_mode(0o755)).unwrap();

    let mut lease = std::process::Command::new("bash");
    lease.arg(kit.join("run.sh")).arg("lease").env("OUT", &out);
    lease.envs(gfocal.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let run: Run = lease.output().unwrap().into();
    let text = run.ok().stdout;
    let summary = fs::read_to_string(out.join("summary.txt")).unwrap();
    assert!(text.ends_with(&summary), "{text}");
    let says = |item: &str, what: &str| {
        let found = summary.lines().any(|line| line.starts_with(item) && line.contains(what));
        assert!(found, "{item}: no {what} in\n{summary}");
    };
    says("auto", "chooses cuda:0");
    for good in ["load-first", "load-second", "check-rows", "check-head", "tests-golden", "repeat"] {
        says(good, " s");
    }
    for left_out in ["bench-qfl-672000x80", "memcheck-head", "ncu-qfl-f32", "peers-dfl-262144x17"] {
        says(left_out, "the emulator is no GPU");
    }
    assert!(!summary.contains("FAILED"), "{summary}");
    let log = fs::read_to_string(kit.join("logs/check-head.log")).unwrap();
    assert_eq!(log.matches("right").count(), 2 * 3, "{log}");
}
