//! `cargo xtask ptx --coverage`: which instructions of kernels/ptx no test has run.
//!
//! The emulator writes what has run, by line, when a process ends. Here every test runs in a process of
//! its own, so that it is known which test runs what: `--mutants` needs that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::tests::{self, Test};
use super::text::{Entry, Text};
use crate::files::{empty_folder, entries, has_extension, read, write};
use crate::{cache, root};

/// How many of all instructions tests must run.
const LEAST: f64 = 0.99;
/// Between them every variant is loaded.
pub const CAPABILITIES: [u32; 2] = [90, 75];
const LIMIT: Duration = Duration::from_secs(1800);

/// Lines that have run, by the text's hash and the entry point.
pub type Lines = BTreeMap<(u64, String), BTreeSet<u32>>;

/// What an instruction that no test runs is excused by.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    /// An entry point without its storage type.
    entry: String,
    /// How many of its instructions, in whatever storage type.
    at_most: usize,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exceptions {
    #[serde(default)]
    uncovered: Vec<Exception>,
}

/// Where the tests' coverage is kept.
pub fn folder() -> PathBuf {
    cache().join("coverage")
}

/// Runs the tests, or reads what others have written to `from`, and prints what has not run.
pub fn run(from: Option<&Path>) -> Result<(), String> {
    let texts = Text::all()?;
    let mut lines = Lines::new();
    let mut failed = Vec::new();
    match from {
        Some(folder) => read_all(folder, &texts, &mut lines)?,
        None => measure(&texts, &mut lines, &mut failed)?,
    }
    report(&texts, &lines)?;
    if failed.is_empty() { Ok(()) } else { Err(format!("these tests fail: {}", failed.join(", "))) }
}

/// Runs every test at one capability, and those that run kernels at the other one too. Those that fail are
/// named in `failed`; what they have run does not count.
fn measure(texts: &[Text], lines: &mut Lines, failed: &mut Vec<String>) -> Result<(), String> {
    let mut chosen = tests::all()?;
    empty_folder(&folder())?;
    for capability in CAPABILITIES {
        println!("{} tests at compute capability {capability}", chosen.len());
        let results = tests::on_all_cores(&chosen, |test| measure_one(test, capability, texts))?;
        let mut with_kernels = Vec::new();
        for (test, own) in chosen.into_iter().zip(results) {
            let Some(own) = own else {
                failed.push(format!("{} at compute capability {capability}", test.name));
                continue;
            };
            if own.is_empty() {
                continue;
            }
            for (key, numbers) in own {
                lines.entry(key).or_default().extend(numbers);
            }
            with_kernels.push(test);
        }
        chosen = with_kernels;
    }
    Ok(())
}

/// `None`: it fails.
fn measure_one(test: &Test, capability: u32, texts: &[Text]) -> Result<Option<Lines>, String> {
    let own = folder().join(capability.to_string()).join(test.file_name());
    empty_folder(&own)?;
    let log = own.join("log");
    let outcome = test.run(capability, &[("GFOCAL_EMULATOR_COVERAGE", &own)], LIMIT, Some(&log))?;
    if !outcome.passed {
        println!("{} fails at compute capability {capability}: see {}", test.name, log.display());
        return Ok(None);
    }
    let mut lines = Lines::new();
    read_all(&own, texts, &mut lines)?;
    write(&own.join("seconds"), outcome.seconds.to_string())?;
    Ok(Some(lines))
}

/// Adds what the emulator has written to files of this folder and of those in it.
pub fn read_all(folder: &Path, texts: &[Text], lines: &mut Lines) -> Result<(), String> {
    for path in entries(folder)? {
        if path.is_dir() {
            read_all(&path, texts, lines)?;
        } else if has_extension(&path, "coverage") {
            for record in read(&path)?.lines() {
                read_record(record, texts, lines).map_err(|what| format!("{}: {what}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// "HASH ENTRY ran 12-30,35-35 not 31-34". Texts that are not of kernels/ptx are left out: tests have some
/// of their own.
fn read_record(record: &str, texts: &[Text], lines: &mut Lines) -> Result<(), String> {
    let bad = || format!("`{record}` is not understood");
    let words: Vec<&str> = record.split_whitespace().collect();
    let [hash, name, "ran", ran, "not", rest] = words[..] else { return Err(bad()) };
    let hash = u64::from_str_radix(hash, 16).map_err(|_| bad())?;
    let entry = texts.iter().find(|text| text.hash == hash);
    let Some(entry) = entry.and_then(|text| text.entries.iter().find(|entry| entry.name == name)) else {
        return Ok(());
    };
    let ran = numbers(ran, entry).ok_or_else(bad)?;
    let others = numbers(rest, entry).ok_or_else(bad)?;
    if ran.len() + others.len() != entry.instructions.len() {
        return Err(format!("the emulator and this program count the instructions of {name} differently"));
    }
    if !ran.is_empty() {
        lines.entry((hash, name.to_owned())).or_default().extend(ran);
    }
    Ok(())
}

/// The instructions in these ranges of lines.
fn numbers(ranges: &str, entry: &Entry) -> Option<Vec<u32>> {
    let mut found = Vec::new();
    for range in ranges.split(',').filter(|range| *range != "none") {
        let (first, last) = range.split_once('-')?;
        let first = entry.instructions.binary_search(&first.parse().ok()?).ok()?;
        let last = entry.instructions.binary_search(&last.parse().ok()?).ok()?;
        found.extend(entry.instructions.get(first..=last)?);
    }
    Some(found)
}

/// Prints what has not run, and fails if that is too much, or has no reason.
fn report(texts: &[Text], lines: &Lines) -> Result<(), String> {
    let path = root().join("kernels/uncovered.toml");
    let exceptions: Exceptions =
        toml::from_str(&read(&path)?).map_err(|error| format!("{}: {error}", path.display()))?;
    let (mut all, mut ran) = (0, 0);
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for text in texts {
        for entry in &text.entries {
            let covered = lines.get(&(text.hash, entry.name.clone()));
            let missing: Vec<u32> = entry
                .instructions
                .iter()
                .copied()
                .filter(|line| covered.is_none_or(|covered| !covered.contains(line)))
                .collect();
            all += entry.instructions.len();
            ran += entry.instructions.len() - missing.len();
            if missing.is_empty() {
                continue;
            }
            let place = format!("kernels/ptx/{}: {}", text.name, entry.name);
            let count = format!("{} of {}", missing.len(), entry.instructions.len());
            println!("{place}: {count} have not run: {}", ranges(&missing, &entry.instructions));
            let plain = entry.name.rsplit_once('_').map_or(entry.name.as_str(), |(plain, _)| plain);
            match exceptions.uncovered.iter().position(|exception| exception.entry == plain) {
                Some(index) => {
                    let exception = &exceptions.uncovered[index];
                    used.insert(index);
                    println!("    {}", exception.reason);
                    if missing.len() > exception.at_most {
                        wrong.push(format!("{place}: {count}, of which {} are excused", exception.at_most));
                    }
                }
                None => wrong.push(format!("{place}: {count}, without a reason")),
            }
        }
    }
    for (index, exception) in exceptions.uncovered.iter().enumerate() {
        if !used.contains(&index) {
            wrong.push(format!("`{}` needs no exception any more", exception.entry));
        }
    }
    let share = ran as f64 / all as f64;
    println!("{ran} of {all} instructions have run: {:.2} %", 100.0 * share);
    if share < LEAST {
        wrong.push(format!("{:.2} % is less than {:.0} %", 100.0 * share, 100.0 * LEAST));
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("see kernels/uncovered.toml:\n  {}", wrong.join("\n  ")))
    }
}

/// "12-30, 35": lines that follow each other as instructions.
fn ranges(missing: &[u32], all: &[u32]) -> String {
    let mut text = String::new();
    let mut index = 0;
    while index < missing.len() {
        let first = missing[index];
        let mut at = all.binary_search(&first).unwrap_or_default();
        while missing.get(index + 1).is_some() && missing.get(index + 1) == all.get(at + 1) {
            index += 1;
            at += 1;
        }
        let last = missing[index];
        let separator = if text.is_empty() { "" } else { ", " };
        text +=
            &if first == last { format!("{separator}{first}") } else { format!("{separator}{first}-{last}") };
        index += 1;
    }
    text
}

#[cfg(test)]
mod tests_of_this {
    use super::*;

    #[test]
    fn lines_that_have_run() {
        let instructions = vec![3, 4, 7, 9, 10, 12];
        let entry = Entry { name: "k_f32".to_owned(), instructions: instructions.clone() };
        assert_eq!(numbers("3-7,12-12", &entry), Some(vec![3, 4, 7, 12]));
        assert_eq!(numbers("none", &entry), Some(vec![]));
        assert_eq!(numbers("3-8", &entry), None);
        assert_eq!(ranges(&[3, 4, 7, 10], &instructions), "3-7, 10");
    }
}
