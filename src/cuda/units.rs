//! The units that kernels come in, and their entry points.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

use super::Storage;
use crate::{assign, boxes, decode, dfl, gfl, head, integral, qfl, scale};

/// A group of kernels that are loaded together: one file of kernels/, one module for each storage type.
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    /// As in the names of its source and its images.
    pub name: &'static str,
    /// Whether it has no logits, or those of any type, and so is there for f32 alone.
    pub only_f32: bool,
    /// Its entry points, without the storage type.
    pub entries: &'static [&'static str],
    /// The function that gives it to [`Handle::prepare`](super::Handle::prepare).
    pub units: &'static str,
}

pub(crate) const fn unit(name: &'static str, units: &'static str, entries: &'static [&'static str]) -> Unit {
    Unit { name, only_f32: false, entries, units }
}

pub(crate) const fn without_logits(
    name: &'static str,
    units: &'static str,
    entries: &'static [&'static str],
) -> Unit {
    Unit { name, only_f32: true, entries, units }
}

/// All of them. What is seldom called (the loss alone, another beta than 2) has units of its own, so that
/// training does not load it.
pub(super) const UNITS: [Unit; COUNT] = {
    let mut all = [FAMILIES[0][0]; COUNT];
    let (mut family, mut next) = (0, 0);
    while family < FAMILIES.len() {
        let mut unit = 0;
        while unit < FAMILIES[family].len() {
            all[next] = FAMILIES[family][unit];
            (unit, next) = (unit + 1, next + 1);
        }
        family += 1;
    }
    all
};

/// Those of each operation.
const FAMILIES: [&[Unit]; 9] = [
    &qfl::launch::UNITS,
    &dfl::launch::UNITS,
    &gfl::launch::UNITS,
    &integral::launch::UNITS,
    &assign::launch::UNITS,
    &boxes::launch::UNITS,
    &decode::launch::UNITS,
    &head::launch::UNITS,
    &scale::launch::UNITS,
];

const COUNT: usize = {
    let (mut count, mut family) = (0, 0);
    while family < FAMILIES.len() {
        (count, family) = (count + FAMILIES[family].len(), family + 1);
    }
    count
};

/// An entry point: at load it is found by its name, at launch by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The unit's place in [`UNITS`].
    pub unit: usize,
    /// Among the unit's entry points.
    pub index: usize,
}

/// The entry point of this name. The compiler looks it up: a name that there is not does not compile.
pub(crate) const fn entry(name: &str) -> Entry {
    let mut unit = 0;
    while unit < UNITS.len() {
        let entries = UNITS[unit].entries;
        let mut index = 0;
        while index < entries.len() {
            if is_same(entries[index], name) {
                return Entry { unit, index };
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

/// Kernels that [`Handle::prepare`](super::Handle::prepare) loads. Each operation says what its calls
/// need, as in [`QualityFocalLoss::units`](crate::QualityFocalLoss::units); `|` joins them.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Units(u64);

const STORAGES: usize = Storage::ALL.len();

impl Units {
    /// All that there are, for some storage types of logits. No call needs them all, and loading them
    /// takes long.
    pub fn all(storages: &[Storage]) -> Units {
        let mut all = Units::default();
        for &storage in storages {
            (0..UNITS.len()).for_each(|unit| all |= Units::of(unit, storage));
        }
        all
    }

    /// A unit by its place in [`UNITS`]. What has no logits of one type is there for f32, whatever they are.
    pub(crate) fn of(unit: usize, storage: Storage) -> Units {
        Units(1 << Units::place(unit, storage))
    }

    /// How many places there are.
    pub(super) const PLACES: usize = UNITS.len() * STORAGES;

    /// Where the module of a unit and a storage type is kept.
    pub(super) fn place(unit: usize, storage: Storage) -> usize {
        unit * STORAGES + if UNITS[unit].only_f32 { 0 } else { storage as usize }
    }

    /// What is kept at a place.
    pub(super) fn at(place: usize) -> (&'static Unit, Storage) {
        (&UNITS[place / STORAGES], Storage::ALL[place % STORAGES])
    }

    pub(super) fn places(self) -> impl Iterator<Item = usize> {
        (0..Units::PLACES).filter(move |place| self.0 >> place & 1 == 1)
    }
}

impl BitOr for Units {
    type Output = Units;

    fn bitor(self, other: Units) -> Units {
        Units(self.0 | other.0)
    }
}

impl BitOrAssign for Units {
    fn bitor_assign(&mut self, other: Units) {
        self.0 |= other.0;
    }
}

/// As in `qfl in bf16, assign`.
impl fmt::Display for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (unit, storage)) in self.places().map(Units::at).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{}", unit.name)?;
            if !unit.only_f32 {
                write!(f, " in {}", storage.name())?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Units({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_finds_its_own_place() {
        for (place, unit) in UNITS.iter().enumerate() {
            for (index, name) in unit.entries.iter().enumerate() {
                assert_eq!(entry(name), Entry { unit: place, index });
            }
        }
    }

    #[test]
    fn every_unit_has_a_place_of_its_own() {
        const { assert!(Units::PLACES <= 64) };
        let all = Units::all(&Storage::ALL);
        assert_eq!(all.places().count(), 12 * 3 + 4);
        for place in all.places() {
            let (unit, storage) = Units::at(place);
            let index = UNITS.iter().position(|known| known.name == unit.name).expect("it is one of them");
            assert_eq!(Units::place(index, storage), place);
        }
        let (qfl, boxes) = (entry("qfl_rows_forward").unit, entry("boxes_forward").unit);
        let some = Units::of(qfl, Storage::Bf16) | Units::of(boxes, Storage::F16);
        assert_eq!(some.to_string(), "qfl_forward in bf16, boxes");
    }
}
