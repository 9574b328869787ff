//! How often each test has noticed a mutant so far: those that are likely to, for the time they take, are first.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::cache;
use crate::files::write;

/// How many mutants a test has been run on, and how many of them it has noticed.
type Count = (u32, u32);

/// The counts by the tests' names.
pub struct Noticed(Mutex<BTreeMap<String, Count>>);

fn path() -> PathBuf {
    cache().join("noticed")
}

impl Noticed {
    /// What earlier runs have counted; nothing is lost without it but time.
    pub fn read() -> Noticed {
        let text = fs::read_to_string(path()).unwrap_or_default();
        let count = |line: &str| {
            let (name, counts) = line.split_once(' ')?;
            let (tried, noticed) = counts.split_once(' ')?;
            Some((name.to_owned(), (tried.parse().ok()?, noticed.parse().ok()?)))
        };
        Noticed(Mutex::new(text.lines().filter_map(count).collect()))
    }

    pub fn write(&self) -> Result<(), String> {
        let counts = self.0.lock().expect("no thread has panicked");
        let line = |(name, (tried, noticed)): (&String, &Count)| format!("{name} {tried} {noticed}\n");
        write(&path(), counts.iter().map(line).collect::<String>())
    }

    pub fn count(&self, test: &str, noticed: bool) {
        let mut counts = self.0.lock().expect("no thread has panicked");
        let (tried, by_it) = counts.entry(test.to_owned()).or_default();
        *tried += 1;
        *by_it += u32::from(noticed);
    }

    /// How long it is expected to take this test, which takes `seconds`, for each mutant that it notices.
    pub fn expected_seconds(&self, test: &str, seconds: f64) -> f64 {
        let counts = self.0.lock().expect("no thread has panicked");
        let (tried, noticed) = counts.get(test).copied().unwrap_or_default();
        // As if it had been tried twice, and had noticed one.
        (seconds + STARTING) * f64::from(tried + 2) / f64::from(noticed + 1)
    }
}

/// How long it takes to start a test.
const STARTING: f64 = 0.05;
