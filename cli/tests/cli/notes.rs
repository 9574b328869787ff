//! Tensors of the file that nothing reads are named.

use crate::support::*;

fn note(run: Run) -> String {
    let run = run.ok();
    assert!(run.stderr.lines().count() <= 1, "{}", run.stderr);
    run.stderr
}

#[test]
fn one_and_many() {
    let folder = Folder::new();
    let with = |extra: &[&'static str]| {
        let mut tensors = vec![("logits", f32s(&[1, 2], &[0.0; 2])), ("target", f32s(&[1], &[0.5]))];
        tensors.extend(extra.iter().map(|&name| (name, i64s(&[]))));
        folder.file("dfl.safetensors", &tensors)
    };
    assert_eq!(note(cpu("dfl", &with(&[]), "")), "");
    let one = "gfocal: note: the tensor labels of the file is not read\n";
    assert_eq!(note(cpu("dfl", &with(&["labels"]), "")), one);
    assert_eq!(note(cpu("dfl", &with(&["labels"]), "--json")), one);
    let two = "gfocal: note: 2 tensors of the file are not read: labels, quality\n";
    assert_eq!(note(cpu("dfl", &with(&["quality", "labels"]), "")), two);
}

#[test]
fn every_command_tells() {
    let [step, head] = ["step", "head"].map(|sample| checkout(&format!("samples/{sample}.safetensors")));
    assert!(note(cpu("qfl", &step, "")).contains("not read: dfl.logits, dfl.target"));
    assert!(note(cpu("dfl", &step, "")).contains("qfl.quality"));
    assert_eq!(note(cpu("gfl", &step, "")), "");
    assert!(note(cpu("head", &head, "")).contains("gt_boxes, gt_image, gt_labels"));
    let assigned = note(cpu("head", &head, "--assign"));
    let names = (0..3).map(|level| format!("level{level}.box_targets, level{level}.labels"));
    let names = names.collect::<Vec<_>>().join(", ");
    assert_eq!(assigned, format!("gfocal: note: 6 tensors of the file are not read: {names}\n"));
    let folder = Folder::new();
    let run = command().arg("plot").arg(&head).arg("--out").arg(folder.path("head.svg")).output().unwrap();
    assert!(note(run.into()).contains("gt_boxes"));
}

/// Tensors that an option turns on are not read without it.
#[test]
fn options_that_are_off_are_seen() {
    let report = crate::reports::report("ignore_boxes");
    let without = note(cpu("assign", &report, ""));
    assert!(without.contains("gt_ignore_boxes, gt_ignore_image"), "{without}");
    let with = note(cpu("assign", &report, "--ignore-iof 0.5"));
    assert!(with.contains("want.level0.labels") && !with.contains("gt_ignore"), "{with}");
}

#[test]
fn many_tensors_of_levels_are_told_together() {
    let told = note(cpu("head", &golden("head_small"), "--assign"));
    for names in ["level{0,1,2}.labels", "level{0,1,2}.box_targets", "level{0,1,2}.grad_cls_logits"] {
        assert!(told.contains(names), "{told}");
    }
    assert!(!told.contains("label_weights"), "{told}"); // they multiply those of the assignment
}
