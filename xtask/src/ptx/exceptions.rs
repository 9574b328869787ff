//! kernels/mutants.toml: mutants that no test notices, and why that is right.

use std::collections::{BTreeMap, BTreeSet};
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

/// In an excerpt: some lines of no account, up to [`MOST_BETWEEN`]. None of them has a label, loads, or writes a
/// register of the lines before.
const BETWEEN: &str = "...";
const MOST_BETWEEN: u32 = 24;

impl Everywhere {
    /// The excerpt's lines, in pieces with others between them.
    fn pieces(&self) -> Vec<Vec<&str>> {
        let mut pieces = vec![Vec::new()];
        for line in self.lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match pieces.last_mut() {
                Some(piece) if line != BETWEEN => piece.push(line),
                _ => pieces.push(Vec::new()),
            }
        }
        pieces
    }

    /// In which piece an instruction is, and where in it.
    fn place(&self, from: &str) -> Option<(usize, usize)> {
        let is_it = |line: &str| plain(line) == plain(from);
        let pieces = self.pieces();
        let lines = (0..)
            .zip(&pieces)
            .flat_map(|(i, piece)| piece.iter().zip(0..).map(move |(line, j)| (line, (i, j))));
        let mut places = lines.filter(|(line, _)| is_it(line)).map(|(_, place)| place);
        let place = places.next()?;
        places.next().is_none().then_some(place)
    }

    fn check(&self) -> Result<(), String> {
        for [from, _] in &self.changes {
            self.place(from).ok_or_else(|| format!("`{from}` is not one of the lines\n{}", self.lines))?;
        }
        Ok(())
    }

    fn excuses(&self, text: &Text, line: u32, to: &str) -> bool {
        self.changes.iter().any(|[from, changed]| {
            let Some((piece, place)) = self.place(from) else { return false };
            line.checked_sub(place as u32).is_some_and(|first| {
                first > 0 && Search { text, pieces: self.pieces(), changed, to }.finds(vec![first], piece)
            })
        })
    }
}

/// Looks for an excerpt around a changed line.
struct Search<'a> {
    text: &'a Text,
    pieces: Vec<Vec<&'a str>>,
    changed: &'a str,
    to: &'a str,
}

impl Search<'_> {
    /// Where pieces from number `from` on begin is known; the next ones are looked for, then those before.
    fn finds(&self, begins: Vec<u32>, from: usize) -> bool {
        let pieces = &self.pieces[from..from + begins.len()];
        let found = |(begin, piece): (&u32, &Vec<&str>)| (*begin..).take(piece.len());
        let numbers: Vec<u32> = begins.iter().zip(pieces).flat_map(found).collect();
        let lines = numbers.iter().map(|&line| self.text.line(line)).chain([self.to]);
        if !alike(lines, pieces.iter().flatten().copied().chain([self.changed])) || !self.is_kept(&numbers) {
            return false;
        }
        let end = begins[begins.len() - 1] + pieces[pieces.len() - 1].len() as u32;
        if from + begins.len() < self.pieces.len() {
            return (0..=MOST_BETWEEN)
                .any(|between| self.finds([&begins[..], &[end + between]].concat(), from));
        }
        let Some(before) = from.checked_sub(1) else { return true };
        (0..=MOST_BETWEEN).any(|between| {
            let begin = begins[0].checked_sub(self.pieces[before].len() as u32 + between);
            begin.is_some_and(|begin| begin > 0 && self.finds([&[begin], &begins[..]].concat(), before))
        })
    }

    /// Whether what is between these lines leaves the registers of those before as they are, loads nothing, and has
    /// no other way in.
    fn is_kept(&self, numbers: &[u32]) -> bool {
        let mut registers = BTreeSet::new();
        numbers.windows(2).all(|pair| {
            let names = self.text.line(pair[0]).split(|c| !is_of_name(c));
            registers.extend(names.filter(|name| name.starts_with('%')));
            (pair[0] + 1..pair[1]).map(|line| plain(self.text.line(line))).all(|line| {
                let mut words = line.split(' ').skip(1);
                let written =
                    words.next().and_then(|operands| operands.split(',').next()).unwrap_or_default();
                let writes_none = line.starts_with("st.") || line.starts_with('@') || line.starts_with("bra");
                let other = line.starts_with("ld.") || line.ends_with(':') || written.starts_with('{');
                !other && (writes_none || !registers.contains(written))
            })
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

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "%$._".contains(c)
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
    fn lines_between_leave_registers_as_they_are() {
        let lines = |between: &str| {
            format!(
                ".visible .entry k_f32(\n)\n{{\nmov.f32 %f1,0f00000000;\n{between}cvt.rn.f16.f32 %rs1,%f1;\nret;\n}}\n"
            )
        };
        let exceptions: Exceptions = toml::from_str(
            "[[everywhere]]\nlines = \"\"\"\nmov.f32 %f10,0f00000000;\n...\ncvt.rn.f16.f32 %rs20,%f10;\n\"\"\"\n\
             changes = [[\"cvt.rn.f16.f32 %rs20,%f10;\", \"cvt.rz.f16.f32 %rs20,%f10;\"]]\nreason = \"it is 0\"",
        )
        .expect("it is right");
        let excused = |between: &str| {
            let text = Text::new("unit.f16.sm_75.ptx".to_owned(), &lines(between));
            let line = 5 + between.lines().count() as u32;
            exceptions.reason(&text, "k_f32", line, "cvt.rz.f16.f32 %rs1, %f1;").is_some()
        };
        assert!(excused("") && excused("mov.f32 %f2,%f1;\n") && excused("st.global.f32 [%rd1],%f1;\n"));
        assert!(!excused("mov.f32 %f1,%f2;\n") && !excused("mov.b64 {%r1,%f1},%fd1;\n"), "it is written");
        assert!(!excused("ld.global.f32 %f2,[%rd1];\n"), "a load");
        assert!(!excused(&"mov.f32 %f2,%f1;\n".repeat(25)), "too far");
        assert!(!excused("$L1:\n"), "another way in");
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
