//! The units that kernels come in, and their entry points.

/// A group of kernels that are loaded together: one file of kernels/, one module for each storage type.
pub(in crate::cuda) struct Unit {
    /// As in the names of its source and its images.
    pub name: &'static str,
    /// Whether it has no logits, and so is there for f32 alone.
    pub only_f32: bool,
    /// Its entry points, without the storage type.
    pub entries: &'static [&'static str],
}

const fn unit(name: &'static str, entries: &'static [&'static str]) -> Unit {
    Unit { name, only_f32: false, entries }
}

const fn without_logits(name: &'static str, entries: &'static [&'static str]) -> Unit {
    Unit { name, only_f32: true, entries }
}

/// All of them. What is seldom called (the loss alone, another beta than 2) has units of its own, so that
/// training does not load it.
pub(in crate::cuda) const UNITS: [Unit; 14] = [
    unit("qfl", &["qfl_linear_forward_backward", "qfl_rows_forward_backward", "qfl_dense_forward_backward"]),
    unit("qfl_forward", &["qfl_linear_forward", "qfl_rows_forward", "qfl_dense_forward"]),
    unit(
        "qfl_any_beta",
        &[
            "qfl_linear_forward_any_beta",
            "qfl_linear_forward_backward_any_beta",
            "qfl_rows_forward_any_beta",
            "qfl_rows_forward_backward_any_beta",
            "qfl_dense_forward_any_beta",
            "qfl_dense_forward_backward_any_beta",
        ],
    ),
    unit("dfl", &["dfl_tile16_forward_backward", "dfl_tile17_forward_backward", "dfl_rows_forward_backward"]),
    unit("dfl_forward", &["dfl_tile16_forward", "dfl_tile17_forward", "dfl_rows_forward"]),
    unit("gfl", &["gfl_forward_backward"]),
    unit("gfl_forward", &["gfl_forward"]),
    unit("integral", &["integral_forward", "integral_forward_backward"]),
    without_logits("assign", &["atss_candidates", "atss_targets"]),
    without_logits("boxes", &["boxes_forward", "boxes_forward_backward"]),
    unit("head_positives", &["head_positives"]),
    unit("head", &["head_losses_forward_backward"]),
    unit("head_forward", &["head_losses_forward"]),
    unit("head_any_beta", &["head_losses_forward_any_beta", "head_losses_forward_backward_any_beta"]),
];

/// An entry point: at load it is found by its name, at launch by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub unit: &'static str,
    /// Among the unit's entry points.
    pub index: usize,
}

/// The entry point of this name. The compiler looks it up: a name that there is not does not compile.
pub(super) const fn entry(name: &str) -> Entry {
    let mut unit = 0;
    while unit < UNITS.len() {
        let entries = UNITS[unit].entries;
        let mut index = 0;
        while index < entries.len() {
            if is_same(entries[index], name) {
                return Entry { unit: UNITS[unit].name, index };
            }
            index += 1;
        }
        unit += 1;
    }
    panic!("no unit has an entry point of this name")
}

const fn is_same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_finds_its_own_place() {
        for unit in &UNITS {
            for (index, name) in unit.entries.iter().enumerate() {
                assert_eq!(entry(name), Entry { unit: unit.name, index });
            }
        }
    }
}
