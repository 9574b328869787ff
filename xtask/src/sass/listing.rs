//! Machine code as `nvdisasm -c` prints it, read into instructions.

use std::collections::{BTreeMap, BTreeSet};

/// A kernel's machine code.
#[derive(Debug)]
pub struct Kernel {
    /// The entry point's name.
    pub name: String,
    /// In the order of the addresses, without the padding at the end.
    pub code: Vec<Instruction>,
    /// The positions in `code` that have a label.
    pub labelled: BTreeSet<usize>,
}

/// One machine instruction, as in `@P0 LDG.E.128 R4, [R2] ;`.
#[derive(Debug, PartialEq, Eq)]
pub struct Instruction {
    /// In bytes from the kernel's first.
    pub address: u32,
    /// The predicate: `@P0`, or nothing.
    pub guard: String,
    /// With its modifiers: `LDG.E.128`.
    pub opcode: String,
    /// `R4, [R2]`.
    pub operands: String,
    /// The positions in the code that the labels among the operands stand for.
    pub targets: Vec<usize>,
}

impl Instruction {
    /// The opcode without modifiers: `LDG`.
    pub fn base(&self) -> &str {
        self.opcode.split('.').next().unwrap_or_default()
    }

    /// How many bits per thread a load or store moves.
    pub fn width(&self) -> u32 {
        let sizes = self.opcode.split('.').skip(1).filter_map(|modifier| {
            let digits = modifier.trim_start_matches(['U', 'S']);
            digits.parse().ok().filter(|bits| [8, 16, 32, 64, 128, 256].contains(bits))
        });
        sizes.last().unwrap_or(32)
    }

    /// Whether it may go on elsewhere than behind itself.
    pub fn jumps(&self) -> bool {
        matches!(self.base(), "BRA" | "BRX" | "BRXU" | "JMP" | "JMX" | "JMXU")
    }

    /// Whether a thread that executes it, predicate and all, does not come past it.
    pub fn ends(&self) -> bool {
        matches!(self.base(), "EXIT" | "RET" | "KILL")
    }

    /// Whether it does what it says for some threads only: by its predicate, or by one among the
    /// operands as in ``BRA P1, `(.L_x_1)``.
    pub fn conditional(&self) -> bool {
        let by_operand = self.base() == "BRA" && !self.operands.starts_with('`');
        let modifiers: Vec<_> = self.opcode.split('.').skip(1).collect();
        let by_vote = self.base() == "BRA" && (modifiers.contains(&"DIV") || modifiers.contains(&"CONV"));
        !self.guard.is_empty() || by_operand || by_vote
    }
}

impl Kernel {
    /// How many instructions there are of a kind.
    pub fn count(&self, kind: impl Fn(&Instruction) -> bool) -> usize {
        self.code.iter().filter(|&instruction| kind(instruction)).count()
    }
}

/// The kernels of a listing.
pub fn read(listing: &str) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    let mut entries = Vec::new();
    let mut labels: BTreeMap<&str, usize> = BTreeMap::new(); // of the function that is being read
    let mut inside = false;
    for line in listing.lines().map(str::trim).chain([".section"]) {
        if let Some(name) = entry(line) {
            entries.push(name);
        } else if line.starts_with(".section") {
            if let Some(kernel) = kernels.last_mut().filter(|_| inside) {
                finish(kernel, &labels);
            }
            inside = false;
            labels.clear();
        } else if let Some(name) = text_label(line) {
            inside = true;
            kernels.push(Kernel { name: name.to_owned(), code: Vec::new(), labelled: BTreeSet::new() });
        } else if inside && let Some(kernel) = kernels.last_mut() {
            if let Some(label) = line.strip_suffix(':') {
                labels.insert(label, kernel.code.len());
            } else {
                kernel.code.extend(instruction(line));
            }
        }
    }
    kernels.retain(|kernel| entries.contains(&kernel.name.as_str()));
    kernels
}

/// Once a function's labels are known.
fn finish(kernel: &mut Kernel, labels: &BTreeMap<&str, usize>) {
    for instruction in &mut kernel.code {
        // A branch names one label, a switch has a table of them.
        let words = instruction.operands.split(|c: char| !(c.is_alphanumeric() || "._$".contains(c)));
        instruction.targets = words.filter_map(|word| labels.get(word).copied()).collect();
        // On sm_80 to sm_89 ptxas leaves some loops by ``CALL.REL.NOINC `(.L_x_1)``. It is a jump.
        if instruction.base() == "CALL" && instruction.operands.starts_with("`(.L") {
            instruction.opcode = "BRA".to_owned();
        }
    }
    strip_padding(&mut kernel.code);
    kernel.labelled = labels.values().copied().filter(|&at| at < kernel.code.len()).collect();
}

/// The kernel that is declared: `.other qfl_f32,@"STO_CUDA_ENTRY STV_DEFAULT"`.
fn entry(line: &str) -> Option<&str> {
    let (name, attributes) = line.strip_prefix(".other")?.split_once(',')?;
    attributes.contains("STO_CUDA_ENTRY").then(|| name.trim())
}

/// The function whose code follows: `.text.qfl_forward_f32:`.
fn text_label(line: &str) -> Option<&str> {
    line.strip_prefix(".text.")?.strip_suffix(':')
}

/// `/*0010*/   @!P0 EXIT ;`
fn instruction(line: &str) -> Option<Instruction> {
    let (address, text) = line.strip_prefix("/*")?.split_once("*/")?;
    let text = text.split_once(';')?.0.trim();
    let (guard, text) = match text.split_once(' ') {
        Some((guard, rest)) if guard.starts_with('@') => (guard, rest.trim_start()),
        _ => ("", text),
    };
    let (opcode, operands) = text.split_once(' ').unwrap_or((text, ""));
    Some(Instruction {
        address: u32::from_str_radix(address, 16).ok()?,
        guard: guard.to_owned(),
        opcode: opcode.to_owned(),
        operands: operands.trim().to_owned(),
        targets: Vec::new(),
    })
}

/// Behind the code stand a branch to itself and NOPs up to the end of a line of the cache.
fn strip_padding(code: &mut Vec<Instruction>) {
    while code.last().is_some_and(|last| last.base() == "NOP") {
        code.pop();
    }
    if code.last().is_some_and(|last| last.base() == "BRA" && last.targets == [code.len() - 1]) {
        code.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = r#"
	.section	.text.qfl_f32,"ax",@progbits
	.sectioninfo	@"SHI_REGISTERS=32"
	.global         qfl_f32
        .type           qfl_f32,@function
        .size           qfl_f32,(.L_x_3 - qfl_f32)
        .other          qfl_f32,@"STO_CUDA_ENTRY STV_DEFAULT"
qfl_f32:
.text.qfl_f32:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 EXIT ;
        /*0020*/                   LDG.E.128.CONSTANT R4, [R2] ;
        /*0030*/                   LDG.E.U16 R5, [R2+0x10] ;
.L_x_0:
        /*0040*/               @P0 CALL.REL.NOINC `(.L_x_1) ;
        /*0050*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm3x_div_rn_noftz_f32_slowpath) ;
.L_x_1:
        /*0060*/                   MUFU.EX2 R4, R4 ;
        /*0070*/                   EXIT ;
.L_x_2:
        /*0080*/                   BRA `(.L_x_2);
        /*0090*/                   NOP;
.L_x_3:
	.section	.text.helper,"ax",@progbits
.text.helper:
        /*0000*/                   RET.REL.NODEC R2 `(qfl_f32);
"#;

    #[test]
    fn a_listing_is_read() {
        let kernels = read(LISTING);
        assert_eq!(kernels.len(), 1, "{kernels:?}");
        let code = &kernels[0].code;
        assert_eq!(kernels[0].name, "qfl_f32");
        let opcodes: Vec<_> = code.iter().map(Instruction::base).collect();
        assert_eq!(opcodes, ["MOV", "EXIT", "LDG", "LDG", "BRA", "CALL", "MUFU", "EXIT"]);
        assert_eq!(code[2].operands, "R4, [R2]");
        let widths: Vec<_> = code.iter().map(Instruction::width).collect();
        assert_eq!(widths, [32, 32, 128, 16, 32, 32, 32, 32]);
        let conditional: Vec<_> = code.iter().map(Instruction::conditional).collect();
        assert_eq!(conditional, [false, true, false, false, true, false, false, false]);
    }

    #[test]
    fn a_call_of_a_label_of_the_same_function_is_a_jump() {
        let kernels = read(LISTING);
        let jump = &kernels[0].code[4];
        assert!(jump.jumps() && jump.conditional(), "{jump:?}");
        assert_eq!(jump.targets, [6]);
        assert_eq!(kernels[0].labelled, [4, 6].into());
        assert!(!kernels[0].code[5].jumps());
    }
}
