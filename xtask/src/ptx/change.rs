//! What can be changed about an instruction.

/// A changed instruction.
#[derive(Debug, PartialEq)]
pub struct Change {
    pub kind: &'static str,
    /// The whole line; empty where the instruction is removed.
    pub to: String,
}

/// Opcodes (up to their types) that take each other's place: the operands are of the same kinds.
const OTHERS: [(&str, &str); 22] = [
    ("add", "sub"),
    ("sub", "add"),
    ("mul.f", "add.f"),
    ("mul.lo", "add"),
    ("mul.rn.f", "add.rn.f"),
    ("min", "max"),
    ("max", "min"),
    ("and", "or"),
    ("or", "and"), // bits that are put together are apart: xor would do the same
    ("xor", "and"),
    ("shl.b", "shr.u"),
    ("shr.u", "shl.b"),
    ("shr.s", "shr.u"),
    ("neg.f", "mov.f"),
    ("abs.f", "mov.f"),
    ("not.pred", "mov.pred"),
    ("ex2.approx.ftz.f32", "mov.f32"),
    ("lg2.approx.ftz.f32", "mov.f32"),
    ("rcp.approx.ftz.f", "mov.f"),
    ("cvt.sat.f32.f32", "mov.f32"),
    ("cvt.rni.f32.f32", "mov.f32"),
    ("atom.acq_rel.gpu.global.inc", "atom.acq_rel.gpu.global.add"),
];

const COMPARISONS: [(&str, &str); 14] = [
    ("lt", "le"),
    ("le", "lt"),
    ("gt", "ge"),
    ("ge", "gt"),
    ("eq", "ne"),
    ("ne", "eq"),
    ("ltu", "lt"),
    ("leu", "le"),
    ("gtu", "gt"),
    ("geu", "ge"),
    ("equ", "eq"),
    ("neu", "eq"),
    ("nan", "num"),
    ("num", "nan"),
];

/// Whose last two operands are not alike, or are in an order.
const ORDERED: [&str; 8] =
    ["sub.", "div.", "rem.", "setp.lt", "setp.gt", "cvt.rn.f16x2", "cvt.rn.bf16x2", "mad.wide"];

const REMOVED: [&str; 5] = ["st.", "red.", "bar.", "cp.async.wait", "cp.async.commit"];

/// All that this program knows to change about the instruction in a line; `below` draws which digit.
pub fn changes(line: &str, below: &mut dyn FnMut(usize) -> usize) -> Vec<Change> {
    let Some(instruction) = Instruction::parse(line) else { return Vec::new() };
    let mut found = Vec::new();
    let mut add = |kind, changed: Instruction| found.push(Change { kind, to: changed.write() });
    let opcode = instruction.opcode.as_str();

    if let Some((from, to)) = OTHERS.iter().find(|(from, _)| opcode.starts_with(from)) {
        let rest = &opcode[from.len()..];
        // "or" is not "or.pred"'s only reading: the types go along, but predicates have no shifts.
        if rest.is_empty() || rest.starts_with('.') || rest.starts_with(|c: char| c.is_ascii_digit()) {
            add("another operation", instruction.with_opcode(format!("{to}{rest}")));
        }
    }
    if let Some(rest) = opcode.strip_prefix("setp.")
        && let Some((comparison, kind)) = rest.split_once('.')
        && let Some((_, to)) = COMPARISONS.iter().find(|(from, _)| *from == comparison)
    {
        add("another comparison", instruction.with_opcode(format!("setp.{to}.{kind}")));
    }
    let count = instruction.operands.len();
    if ORDERED.iter().any(|start| opcode.starts_with(start)) && count >= 3 {
        add("operands swapped", instruction.with_swapped(count - 2, count - 1));
    }
    if opcode.starts_with("selp.") && count == 4 {
        add("operands swapped", instruction.with_swapped(1, 2));
    }
    if opcode.starts_with("fma.") && count == 4 {
        add("operands swapped", instruction.with_swapped(2, 3));
    }
    for (index, operand) in instruction.operands.iter().enumerate() {
        if let Some(halves) = operand.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'))
            && opcode.starts_with("mov.")
            && let Some((low, high)) = halves.split_once(',')
        {
            let swapped = format!("{{{}, {}}}", high.trim(), low.trim());
            add("halves swapped", instruction.with_operand(index, swapped));
        }
        if let Some(changed) = other_number(operand, below)
            && !["shfl", "pmevent", "bar.", "lop3"].iter().any(|start| opcode.starts_with(start))
        {
            add("another number", instruction.with_operand(index, changed));
        }
    }
    if opcode.starts_with("lop3")
        && let Some(table) = instruction.operands.last().and_then(|table| table.parse::<u32>().ok())
    {
        let changed = table ^ 1 << below(8);
        add("another table", instruction.with_operand(count - 1, changed.to_string()));
    }
    if let Some(rest) = opcode.strip_prefix("cvt.rn.")
        && (rest.starts_with("f16") || rest.starts_with("bf16"))
    {
        add("another rounding", instruction.with_opcode(format!("cvt.rz.{rest}")));
    }
    if REMOVED.iter().any(|start| opcode.starts_with(start)) {
        found.push(Change { kind: "removed", to: String::new() });
    }
    if let Some(guard) = &instruction.guard {
        let other = guard.strip_prefix("@!").map_or_else(
            || format!("@!{}", guard.trim_start_matches('@')),
            |predicate| format!("@{predicate}"),
        );
        let changed = Instruction { guard: Some(other), ..instruction.clone() };
        found.push(Change { kind: "the other way", to: changed.write() });
    }
    // Operands that are alike, swapped.
    let unchanged = instruction.write();
    found.retain(|change| change.to != unchanged);
    found
}

#[derive(Clone)]
pub struct Instruction {
    pub guard: Option<String>,
    pub opcode: String,
    pub operands: Vec<String>,
}

impl Instruction {
    pub fn parse(line: &str) -> Option<Instruction> {
        let line = line.split("//").next()?.trim().strip_suffix(';')?;
        let (guard, line) = match line.strip_prefix('@') {
            Some(_) => {
                let (guard, rest) = line.split_once(char::is_whitespace)?;
                (Some(guard.to_owned()), rest.trim())
            }
            None => (None, line),
        };
        let (opcode, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let mut operands = Vec::new();
        let (mut depth, mut operand) = (0, String::new());
        for c in rest.chars() {
            match c {
                '{' | '[' => depth += 1,
                '}' | ']' => depth -= 1,
                ',' if depth == 0 => {
                    operands.push(operand.trim().to_owned());
                    operand.clear();
                    continue;
                }
                _ => {}
            }
            operand.push(c);
        }
        if !operand.trim().is_empty() {
            operands.push(operand.trim().to_owned());
        }
        Some(Instruction { guard, opcode: opcode.to_owned(), operands })
    }

    fn write(&self) -> String {
        let guard = self.guard.as_ref().map_or(String::new(), |guard| format!("{guard} "));
        format!("{guard}{} {};", self.opcode, self.operands.join(", "))
    }

    fn with_opcode(&self, opcode: String) -> Instruction {
        Instruction { opcode, ..self.clone() }
    }

    fn with_operand(&self, index: usize, operand: String) -> Instruction {
        let mut changed = self.clone();
        changed.operands[index] = operand;
        changed
    }

    fn with_swapped(&self, a: usize, b: usize) -> Instruction {
        let mut changed = self.clone();
        changed.operands.swap(a, b);
        changed
    }
}

/// Twice an integer and one more, a digit of floating point changed (the third to the fifth of eight, one of the
/// first five of a double's mantissa), and another offset of an address.
fn other_number(operand: &str, below: &mut dyn FnMut(usize) -> usize) -> Option<String> {
    let digit = |text: &str, at: usize| {
        let mut text: Vec<char> = text.chars().collect();
        let value = text.get(at)?.to_digit(16)?;
        text[at] = char::from_digit((value + 1) % 16, 16)?.to_ascii_uppercase();
        Some(text.into_iter().collect::<String>())
    };
    // 0 becomes 1: a digit of it would make next to nothing.
    if operand.trim_start_matches(['0', 'f', 'd']).is_empty() && operand.len() >= 10 {
        return Some(if operand.starts_with("0f") { "0f3F800000" } else { "0d3FF0000000000000" }.to_owned());
    }
    if operand.starts_with("0f") {
        return digit(operand, 4 + below(3));
    }
    if operand.starts_with("0d") {
        return digit(operand, 5 + below(5));
    }
    if let Ok(number) = operand.parse::<i64>() {
        // Not one more: a shuffle by 9 instead of 8 lanes still meets all, and a mask's lowest bit is noise.
        return Some((if number == -1 { -2 } else { 2 * number + 1 }).to_string());
    }
    let (base, offset) = operand.strip_prefix('[')?.strip_suffix(']')?.rsplit_once('+')?;
    let offset: i64 = offset.trim().parse().ok()?;
    Some(format!("[{}+{}]", base.trim(), if offset == 0 { 16 } else { offset - offset.signum() * 4 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Vec<(&'static str, String)> {
        changes(line, &mut |_| 0).into_iter().map(|change| (change.kind, change.to)).collect()
    }

    #[test]
    fn every_kind() {
        let one = |kind, to: &str| (kind, to.to_owned());
        assert_eq!(of("\tmul.f32 \t%f1, %f2, %f3;"), [one("another operation", "add.f32 %f1, %f2, %f3;")]);
        assert_eq!(
            of("\tsub.s32 \t%r1, %r2, 7;"),
            [
                one("another operation", "add.s32 %r1, %r2, 7;"),
                one("operands swapped", "sub.s32 %r1, 7, %r2;"),
                one("another number", "sub.s32 %r1, %r2, 15;"),
            ]
        );
        assert_eq!(
            of("setp.ge.f32 %p1, %f1, 0f3F800000;"),
            [
                one("another comparison", "setp.gt.f32 %p1, %f1, 0f3F800000;"),
                one("another number", "setp.ge.f32 %p1, %f1, 0f3F900000;"),
            ]
        );
        assert_eq!(of("@%p1 bra $L__BB0_2;"), [one("the other way", "@!%p1 bra $L__BB0_2;")]);
        assert_eq!(of("bar.warp.sync \t-1;"), [one("removed", "")]);
        assert_eq!(
            of("st.global.v2.b32 [%rd1+8], {%r1, %r2};"),
            [one("another number", "st.global.v2.b32 [%rd1+4], {%r1, %r2};"), one("removed", "")]
        );
        assert_eq!(of("mov.b64 %fd1, {%r1, %r2};"), [one("halves swapped", "mov.b64 %fd1, {%r2, %r1};")]);
        assert_eq!(
            of("lop3.b32 %r1, %r2, %r3, %r4, 189;"),
            [one("another table", "lop3.b32 %r1, %r2, %r3, %r4, 188;")]
        );
        assert_eq!(
            of("cvt.rn.f16x2.f32 %r1, %f1, %f2;"),
            [
                one("operands swapped", "cvt.rn.f16x2.f32 %r1, %f2, %f1;"),
                one("another rounding", "cvt.rz.f16x2.f32 %r1, %f1, %f2;"),
            ]
        );
        assert_eq!(of("or.pred %p1, %p2, %p3;"), [one("another operation", "and.pred %p1, %p2, %p3;")]);
        assert_eq!(
            of("mov.f64 %fd1, 0d0000000000000000;"),
            [one("another number", "mov.f64 %fd1, 0d3FF0000000000000;")]
        );
        assert_eq!(of("ret;"), []);
        assert_eq!(of("$L__BB0_2:"), []);
    }
}
