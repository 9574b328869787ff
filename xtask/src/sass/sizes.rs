//! How large the committed PTX is, and how long the assembler takes for it: what a program carries, and what
//! the first call on a new machine waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;

use super::aligned;
use crate::variants::STORAGES;

/// What kernels/ptx may weigh.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// All of it.
    max_bytes: usize,
    /// By unit: its largest image.
    units: BTreeMap<String, usize>,
}

/// An image, and how long its assembly took where that is known.
pub struct Weighed<'a> {
    pub unit: &'a str,
    pub storage: &'a str,
    pub target: u32,
    pub bytes: usize,
    /// Of a processor, as the user's.
    pub time: Option<Duration>,
}

impl Sizes {
    /// What is too large, in words; and units without a bound, or bounds without a unit.
    pub fn faults(&self, images: &[Weighed]) -> Vec<String> {
        let mut faults = Vec::new();
        let all: usize = images.iter().map(|image| image.bytes).sum();
        if all > self.max_bytes {
            faults.push(format!("kernels/ptx has {all} bytes, more than {}", self.max_bytes));
        }
        for image in images {
            let Weighed { unit, storage, target, bytes, .. } = image;
            match self.units.get(*unit) {
                None => faults.push(format!("{unit} has no bound of its size")),
                Some(most) if bytes > most => {
                    faults.push(format!(
                        "{unit}.{storage}.sm_{target}.ptx has {bytes} bytes, more than {most}"
                    ));
                }
                Some(_) => {}
            }
        }
        let known: BTreeSet<&str> = images.iter().map(|image| image.unit).collect();
        let without = self.units.keys().filter(|unit| !known.contains(unit.as_str()));
        faults.extend(without.map(|unit| format!("there is no unit {unit}")));
        faults.sort();
        faults.dedup();
        faults
    }
}

/// A line for each unit: by storage type, the KiB of the image that `architecture` loads and the seconds that
/// ptxas took for it; and the KiB of all the unit's images.
pub fn print(images: &[Weighed], architecture: u32) {
    let mut title = vec!["unit".to_owned()];
    for storage in &STORAGES {
        title.push(format!("{} KiB", storage.name));
        title.push(format!("s for sm_{architecture}"));
    }
    title.push("all KiB".to_owned());
    let mut table = vec![title];
    let kib = |bytes: usize| format!("{:.1}", bytes as f64 / 1024.0);
    let mut units: Vec<&str> = images.iter().map(|image| image.unit).collect();
    units.dedup();
    let mut sums = vec![(0, Duration::ZERO); STORAGES.len()];
    for unit in units {
        let mut row = vec![unit.to_owned()];
        for (storage, sum) in STORAGES.iter().zip(&mut sums) {
            let own = images.iter().filter(|image| image.unit == unit && image.storage == storage.name);
            match own.filter(|image| image.target <= architecture).max_by_key(|image| image.target) {
                Some(image) => {
                    *sum = (sum.0 + image.bytes, sum.1 + image.time.unwrap_or_default());
                    let time = image.time.map_or("-".to_owned(), |time| format!("{:.2}", time.as_secs_f64()));
                    row.extend([kib(image.bytes), time]);
                }
                None => row.extend(["-".to_owned(), "-".to_owned()]),
            }
        }
        let all = images.iter().filter(|image| image.unit == unit).map(|image| image.bytes).sum();
        row.push(kib(all));
        table.push(row);
    }
    let mut last = vec!["all".to_owned()];
    for (bytes, time) in sums {
        last.extend([kib(bytes), format!("{:.2}", time.as_secs_f64())]);
    }
    last.push(kib(images.iter().map(|image| image.bytes).sum()));
    table.push(last);
    print!("{}", aligned(&table));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_is_said_once() {
        let sizes: Sizes = toml::from_str("max_bytes = 30\nunits = { qfl = 20, dfl = 5 }").unwrap();
        let image = |unit, bytes| Weighed { unit, storage: "f32", target: 75, bytes, time: None };
        assert_eq!(sizes.faults(&[image("qfl", 20), image("dfl", 5)]), Vec::<String>::new());
        assert_eq!(
            sizes.faults(&[image("qfl", 21), image("gfl", 10), image("gfl", 1)]),
            [
                "gfl has no bound of its size",
                "kernels/ptx has 32 bytes, more than 30",
                "qfl.f32.sm_75.ptx has 21 bytes, more than 20",
                "there is no unit dfl",
            ]
        );
    }
}
