//! `cargo xtask ptx --mutants`: would the tests notice if the PTX were wrong? One instruction of a copy of
//! kernels/ptx is changed at a time, and the tests that run it are run. The emulator makes the change when
//! it loads the text, so nothing is built anew.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::change::{Change, changes};
use super::coverage::{CAPABILITIES, Lines, folder, read_all};
use super::exceptions::{Exceptions, plain};
use super::noticed::Noticed;
use super::tests::{self, Test};
use super::text::{Entry, Text};
use super::unused::unused;

/// How many of the mutants must be noticed, or be excused.
const LEAST: f64 = 0.95;

/// What is known of a test: how long it takes, and what it runs.
struct Known {
    test: Test,
    capability: u32,
    seconds: f64,
    lines: Lines,
}

struct Mutant<'a> {
    text: &'a Text,
    entry: &'a Entry,
    line: u32,
    change: Change,
}

impl Mutant<'_> {
    fn place(&self) -> String {
        format!("kernels/ptx/{}:{} ({})", self.text.name, self.line, self.entry.name)
    }

    fn words(&self) -> String {
        let to = if self.change.to.is_empty() { "(removed)" } else { &self.change.to };
        format!("{}: `{}` -> `{}`", self.change.kind, plain(self.text.line(self.line)), plain(to))
    }
}

/// What became of a mutant.
enum Verdict {
    Noticed(String),
    Excused(String),
    Missed(usize),
}

/// Tries `count` mutants that follow from `seed`.
pub fn run(count: usize, seed: u64) -> Result<(), String> {
    let texts = Text::all()?;
    let exceptions = Exceptions::read()?;
    let known = known(&texts)?;
    let mutants = draw(&texts, &known, count, seed);
    if mutants.len() < count {
        return Err(
            "there are too few instructions that a test runs: `cargo xtask ptx --coverage` first".into()
        );
    }
    let noticed = Noticed::read();
    let verdicts = tests::on_all_cores(&mutants, |mutant| {
        let verdict = judge(mutant, &known, &exceptions, &noticed)?;
        let words = match &verdict {
            Verdict::Noticed(test) => format!("noticed by {test}"),
            Verdict::Excused(reason) => format!("stays within the contract: {reason}"),
            Verdict::Missed(tests) => format!("NOT NOTICED by {tests} tests"),
        };
        println!("{}\n    {}\n    {words}", mutant.place(), mutant.words());
        Ok(verdict)
    })?;
    noticed.write()?;
    let count_of = |wanted: fn(&Verdict) -> bool| verdicts.iter().filter(|verdict| wanted(verdict)).count();
    let by_tests = count_of(|verdict| matches!(verdict, Verdict::Noticed(_)));
    let excused = count_of(|verdict| matches!(verdict, Verdict::Excused(_)));
    let share = (by_tests + excused) as f64 / verdicts.len() as f64;
    println!(
        "seed {seed}: of {} mutants {by_tests} were noticed, and {excused} stay within the contract: {:.1} %",
        verdicts.len(),
        100.0 * share
    );
    if share < LEAST {
        return Err(format!("{:.1} % is less than {:.0} %", 100.0 * share, 100.0 * LEAST));
    }
    Ok(())
}

/// What `--coverage` has left of every test.
fn known(texts: &[Text]) -> Result<Vec<Known>, String> {
    let mut known = Vec::new();
    for test in tests::all()? {
        for capability in CAPABILITIES {
            let own = folder().join(capability.to_string()).join(test.file_name());
            let Ok(seconds) = fs::read_to_string(own.join("seconds")) else { continue };
            let mut lines = Lines::new();
            read_all(&own, texts, &mut lines)?;
            let seconds = seconds.parse().map_err(|_| format!("{} is not understood", own.display()))?;
            known.push(Known { test: test.clone(), capability, seconds, lines });
        }
    }
    Ok(known)
}

/// Numbers that follow from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ x >> 31) % end as u64) as usize
    }
}

/// Units take turns, so that every operation has its share; all else is drawn.
fn draw<'a>(texts: &'a [Text], known: &[Known], count: usize, seed: u64) -> Vec<Mutant<'a>> {
    let mut units: BTreeMap<&str, Vec<&Text>> = BTreeMap::new();
    for text in texts {
        units.entry(text.unit()).or_default().push(text);
    }
    let mut random = Random(seed);
    let mut mutants: Vec<Mutant> = Vec::new();
    for attempt in 0..100 * count {
        if mutants.len() == count {
            break;
        }
        let files = units.values().nth(attempt % units.len()).expect("an index below their number");
        let text = files[random.below(files.len())];
        if text.entries.is_empty() {
            continue;
        }
        let entry = &text.entries[random.below(text.entries.len())];
        let line = entry.instructions[random.below(entry.instructions.len())];
        let key = (text.hash, entry.name.clone());
        if !known.iter().any(|known| known.lines.get(&key).is_some_and(|lines| lines.contains(&line))) {
            continue;
        }
        let mut changes = changes(text.line(line), &mut |end| random.below(end));
        if changes.is_empty() {
            continue;
        }
        let change = changes.swap_remove(random.below(changes.len()));
        mutants.push(Mutant { text, entry, line, change });
    }
    mutants
}

fn judge(
    mutant: &Mutant,
    known: &[Known],
    exceptions: &Exceptions,
    noticed: &Noticed,
) -> Result<Verdict, String> {
    let of = &mutant.entry.name;
    if let Some(reason) = exceptions.reason(mutant.text, of, mutant.line, &mutant.change.to) {
        return Ok(Verdict::Excused(reason.to_owned()));
    }
    if unused(mutant.text, mutant.entry).contains(&mutant.line) {
        return Ok(Verdict::Excused("nothing uses what the instruction gives".to_owned()));
    }
    let key = (mutant.text.hash, mutant.entry.name.clone());
    let order = format!("{:016x} {} {}", mutant.text.hash, mutant.line, mutant.change.to);
    // Where both capabilities load this text, one is enough.
    let mut covering: BTreeMap<&str, &Known> = BTreeMap::new();
    for known in known {
        if known.lines.get(&key).is_some_and(|lines| lines.contains(&mutant.line)) {
            let best = covering.entry(&known.test.name).or_insert(known);
            if known.seconds < best.seconds {
                *best = known;
            }
        }
    }
    let seconds = |known: &Known| noticed.expected_seconds(&known.test.name, known.seconds);
    let mut covering: Vec<(f64, &Known)> =
        covering.into_values().map(|known| (seconds(known), known)).collect();
    covering.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    for (_, known) in &covering {
        // A loop may not end any more.
        let limit = Duration::from_secs_f64(20.0 + 10.0 * known.seconds);
        let variables = [("GFOCAL_EMULATOR_MUTANT", order.as_ref())];
        let outcome = known.test.run(known.capability, &variables, limit, None)?;
        noticed.count(&known.test.name, !outcome.passed);
        if !outcome.passed {
            return Ok(Verdict::Noticed(format!("{} at {}", known.test.name, known.capability)));
        }
    }
    Ok(Verdict::Missed(covering.len()))
}
