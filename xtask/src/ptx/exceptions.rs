//! kernels/mutants.toml: mutants that no test notices, and why that is right.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;

use super::text::Text;
use crate::root;

/// At one place.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Within {
    /// An entry point, with its storage type.
    entry: String,
    /// The instruction as it is, and changed; spaces do not count.
    from: String,
    to: String,
    reason: String,
}

/// Wherever the compiler has written these lines: it does so for every sum over lanes, in every kernel.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Everywhere {
    /// An excerpt of some entry point, which fits others up to the names of registers, labels and variables.
    lines: String,
    /// Instructions of it as they are, and changed.
    changes: Vec<[String; 2]>,
    /// What the names of entry points begin with; if there is none, all.
    #[serde(default)]
    entries: Vec<String>,
    reason: String,
}

/// Constants whose last digits are of no account.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Digits {
    /// As PTX has them, and which of their hexadecimal digits, from 1, is the first that may be another one.
    numbers: Vec<(String, usize)>,
    reason: String,
}

/// All of them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exceptions {
    #[serde(default)]
    within: Vec<Within>,
    #[serde(default)]
    everywhere: Vec<Everywhere>,
    #[serde(default)]
    digits: Vec<Digits>,
}

impl Exceptions {
    pub fn read() -> Result<Exceptions, String> {
        let path = root().join("kernels/mutants.toml");
        let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = fs::read_to_string(&path).map_err(|error| wrong(&error))?;
        let exceptions: Exceptions = toml::from_str(&text).map_err(|error| wrong(&error))?;
        for everywhere in &exceptions.everywhere {
            everywhere.check().map_err(|error| wrong(&error))?;
        }
        Ok(exceptions)
    }

    /// Why the tests need not notice that the instruction in a line becomes `to`.
    pub fn reason(&self, text: &Text, entry: &str, line: u32, to: &str) -> Option<&str> {
        let from = plain(text.line(line));
        let within = self.within.iter().find(|within| {
            within.entry == entry && plain(&within.from) == from && plain(&within.to) == plain(to)
        });
        let is_of = |everywhere: &Everywhere| {
            let named = everywhere.entries.iter().any(|start| entry.starts_with(start));
            (named || everywhere.entries.is_empty()) && everywhere.excuses(text, line, to)
        };
        let everywhere = || self.everywhere.iter().find(|everywhere| is_of(everywhere));
        let digits = || self.digits.iter().find(|digits| digits.excuse(&from, &plain(to)));
        within
            .map(|within| within.reason.as_str())
            .or_else(|| Some(everywhere()?.reason.as_str()))
            .or_else(|| Some(digits()?.reason.as_str()))
    }
}

impl Digits {
    fn excuse(&self, from: &str, to: &str) -> bool {
        let others = from.bytes().zip(to.bytes()).enumerate().filter(|(_, (a, b))| a != b);
        let [(at, _)] = others.collect::<Vec<_>>()[..] else { return false };
        let is_of = |(number, first): &(String, usize)| {
            let start = from.find(number)?;
            (start + 1 + first..start + number.len()).contains(&at).then_some(()) // after "0f" or "0d"
        };
        from.len() == to.len() && self.numbers.iter().any(|number| is_of(number).is_some())
    }
}

impl Everywhere {
    fn lines(&self) -> Vec<&str> {
        self.lines.lines().filter(|line| !line.trim().is_empty()).collect()
    }

    /// Where the instruction is in the excerpt.
    fn place(&self, from: &str) -> Option<usize> {
        let mut places =
            self.lines().into_iter().map(plain).zip(0..).filter(|(line, _)| *line == plain(from));
        let (_, place) = places.next()?;
        places.next().is_none().then_some(place)
    }

    fn check(&self) -> Result<(), String> {
        for [from, _] in &self.changes {
            self.place(from).ok_or_else(|| format!("`{from}` is not one of the lines\n{}", self.lines))?;
        }
        Ok(())
    }

    fn excuses(&self, text: &Text, line: u32, to: &str) -> bool {
        let lines = self.lines();
        self.changes.iter().any(|[from, changed]| {
            let Some(first) = self.place(from).and_then(|place| line.checked_sub(place as u32)) else {
                return false;
            };
            let found = (first..).take(lines.len()).map(|line| text.line(line));
            first > 0 && alike(found.chain([to]), lines.iter().copied().chain([changed.as_str()]))
        })
    }
}

/// With single spaces, none after a comma, and without the semicolon.
pub fn plain(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.join(" ").replace(", ", ",").trim_end_matches(';').to_owned()
}

/// The same lines, up to the names of registers, labels and variables, which are numbered.
fn alike<'a>(a: impl Iterator<Item = &'a str>, b: impl Iterator<Item = &'a str>) -> bool {
    renamed(a) == renamed(b)
}

/// With each name replaced by the number of those before it.
fn renamed<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names = BTreeMap::new();
    let mut rename = |word: &str| -> String {
        let kind = word.trim_end_matches(|c: char| c.is_ascii_digit());
        let numbered = kind.len() < word.len() && (kind.starts_with(['%', '$']) || kind == "shared");
        if !numbered {
            return word.to_owned();
        }
        let next = names.len();
        format!("{kind}{}", names.entry(word.to_owned()).or_insert(next))
    };
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || "%$._".contains(c);
    lines
        .map(|line| {
            let (mut renamed, mut word) = (String::new(), String::new());
            for c in plain(line).chars() {
                if is_of_name(c) {
                    word.push(c);
                } else {
                    renamed += &rename(&word);
                    renamed.push(c);
                    word.clear();
                }
            }
            renamed + &rename(&word)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = ".visible .entry k_f32(\n)\n{\n\tmov.u32 \t%r7, 16;\n\tshr.u32 %r1,%r7,31;\n\
                        \tadd.s32 %r2,%r7,%r1;\n\tadd.s32 %r3,%r1,%r7;\n\tret;\n}\n";

    fn exceptions(changes: &str) -> Exceptions {
        let text = format!(
            "[[everywhere]]\nlines = \"\"\"\nshr.u32 %r20,%r10,31;\nadd.s32 %r30,%r10,%r20;\n\"\"\"\n\
             changes = {changes}\nreason = \"it is 0\"\n\
             [[within]]\nentry = \"k_f32\"\nfrom = \"ret;\"\nto = \"exit;\"\nreason = \"the same\""
        );
        toml::from_str(&text).expect("it is right")
    }

    #[test]
    fn names_do_not_count_but_places_do() {
        let mut exceptions = exceptions("[[\"add.s32 %r30,%r10,%r20;\", \"sub.s32 %r30, %r10, %r20;\"]]");
        let text = Text::new("unit.f32.sm_75.ptx".to_owned(), TEXT);
        let reason = |line, to| exceptions.reason(&text, "k_f32", line, to);
        assert_eq!(reason(6, "sub.s32 %r2, %r7, %r1;"), Some("it is 0"));
        assert_eq!(reason(6, "sub.s32 %r2, %r1, %r7;"), None, "other operands");
        assert_eq!(reason(6, "xor.b32 %r2, %r7, %r1;"), None, "another change");
        assert_eq!(reason(7, "sub.s32 %r3, %r1, %r7;"), None, "after another line");
        assert_eq!(reason(1, "sub.s32 %r3, %r1, %r7;"), None, "before the text");
        assert_eq!(reason(8, "exit;"), Some("the same"));
        assert_eq!(exceptions.reason(&text, "another_f32", 8, "exit;"), None);
        exceptions.everywhere[0].entries = vec!["l_".to_owned(), "k_".to_owned()];
        assert_eq!(exceptions.reason(&text, "k_f32", 6, "sub.s32 %r2, %r7, %r1;"), Some("it is 0"));
        assert_eq!(exceptions.reason(&text, "another_f32", 6, "sub.s32 %r2, %r7, %r1;"), None);
    }

    #[test]
    fn digits_from_one_on() {
        let digits = Digits { numbers: vec![("0f3E35B613".to_owned(), 4)], reason: String::new() };
        let excuse = |to| digits.excuse("mov.f32 %f1,0f3E35B613", to);
        assert!(excuse("mov.f32 %f1,0f3E36B613") && excuse("mov.f32 %f1,0f3E35B614"));
        assert!(!excuse("mov.f32 %f1,0f3E45B613"), "the third digit");
        assert!(!excuse("mov.f32 %f2,0f3E35B613") && !excuse("mov.f32 %f1,0f3E36C613"));
    }

    #[test]
    fn what_is_changed_is_of_the_excerpt() {
        let wrong = exceptions("[[\"add.s32 %r30,%r20,%r10;\", \"sub.s32 %r30, %r20, %r10;\"]]");
        assert!(wrong.everywhere[0].check().expect_err("another line").contains("is not one of the lines"));
    }
}
