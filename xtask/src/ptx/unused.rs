//! Instructions whose result nothing uses: the compiler leaves those that come of inline assembly, and sums that
//! end in a shuffle.

use std::collections::BTreeSet;

use super::change::Instruction;
use super::text::{Entry, Text};

/// What an instruction needs and gives, by the names of registers.
struct Use {
    line: u32,
    gives: Vec<String>,
    /// What it uses whether or not anything uses what it gives: it stores, branches, loads or synchronises.
    always: Vec<String>,
    /// What it uses if something uses what it gives.
    then: Vec<String>,
    /// Whether it does nothing but give its result.
    only_gives: bool,
}

impl Use {
    fn of(text: &Text, line: u32) -> Option<Use> {
        let instruction = Instruction::parse(text.line(line))?;
        let opcode = instruction.opcode.as_str();
        let operands = || instruction.operands.iter();
        let of =
            |operands: &mut dyn Iterator<Item = &String>| operands.flat_map(|it| registers(it)).collect();
        let gives = of(&mut operands().take(1));
        let rest = |from: usize| of(&mut operands().skip(from));
        Some(match opcode.split('.').next().unwrap_or_default() {
            // Of a load that nothing uses the address must still be right.
            "ld" => Use { line, gives, always: rest(1), then: Vec::new(), only_gives: false },
            // As must be who takes part in a shuffle, but not what is shuffled.
            "shfl" => Use {
                line,
                gives,
                always: rest(2),
                then: of(&mut operands().skip(1).take(1)),
                only_gives: false,
            },
            "st" | "red" | "atom" | "bar" | "bra" | "cp" | "vote" | "ret" | "pmevent" | "exit" | "trap" => {
                let always = of(&mut operands().chain(&instruction.guard));
                Use { line, gives: Vec::new(), always, then: Vec::new(), only_gives: false }
            }
            _ if instruction.guard.is_some() => return None,
            _ => {
                let only_gives = !gives.is_empty();
                Use { line, gives, always: Vec::new(), then: rest(1), only_gives }
            }
        })
    }
}

/// The registers that an operand names.
fn registers(operand: &str) -> Vec<String> {
    let words = operand.split(|c: char| !c.is_ascii_alphanumeric() && c != '%' && c != '_');
    words.filter(|word| word.starts_with('%')).map(str::to_owned).collect()
}

/// Lines of an entry point whose result nothing uses, and that do nothing else. A register is taken to be one
/// variable throughout.
pub fn unused(text: &Text, entry: &Entry) -> BTreeSet<u32> {
    let uses: Option<Vec<Use>> = entry.instructions.iter().map(|&line| Use::of(text, line)).collect();
    let Some(uses) = uses else { return BTreeSet::new() };
    let mut needed: BTreeSet<&str> = uses.iter().flat_map(|it| &it.always).map(String::as_str).collect();
    let is_needed =
        |it: &&Use, needed: &BTreeSet<&str>| it.gives.iter().any(|name| needed.contains(name.as_str()));
    loop {
        let before = needed.len();
        let more: Vec<&String> =
            uses.iter().filter(|it| is_needed(it, &needed)).flat_map(|it| &it.then).collect();
        needed.extend(more.into_iter().map(String::as_str));
        if needed.len() == before {
            break;
        }
    }
    let unused = uses.iter().filter(|it| it.only_gives && !is_needed(it, &needed));
    unused.map(|it| it.line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(body: &str) -> BTreeSet<u32> {
        let text = Text::new("k.f32.sm_75.ptx".to_owned(), &format!(".visible .entry k()\n{{\n{body}\n}}\n"));
        unused(&text, &text.entries[0])
    }

    #[test]
    fn what_nothing_uses() {
        let sum = "mov.f32 %f1,0f00000000;\nadd.f32 %f2,%f2,%f1;\nmov.b32 %r1,%f2;\n\
                   shfl.sync.bfly.b32 %r2|%p1,%r1,%r3,31,-1;\nmov.u32 %r3,16;\n";
        assert_eq!(lines_of(&format!("{sum}ret;")), BTreeSet::from([3, 4, 5]), "a sum and what is summed");
        assert_eq!(lines_of(&format!("{sum}st.global.u32 [%rd1],%r2;")), BTreeSet::new());
        assert_eq!(lines_of(&format!("{sum}@%p1 bra $L1;")), BTreeSet::new());
        assert_eq!(
            lines_of("add.s64 %rd1,%rd2,4;\nld.global.f32 %f1,[%rd1];"),
            BTreeSet::new(),
            "an address"
        );
        assert_eq!(
            lines_of("mov.b64 {%r1,%r2},%fd1;\nst.shared.u32 [%r4],%r2;"),
            BTreeSet::new(),
            "one half"
        );
        assert_eq!(lines_of("mov.b64 {%temp,%r1},%fd1;"), BTreeSet::from([3]));
    }
}
