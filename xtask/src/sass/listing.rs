//! Machine code as `nvdisasm -c` prints it, read into instructions.

/// A kernel's machine code.
#[derive(Debug)]
pub struct Kernel {
    /// The entry point's name.
    pub name: String,
    /// In the order of the addresses, without the padding at the end.
    pub code: Vec<Instruction>,
}

/// One machine instruction, as in `@P0 LDG.E.128 R4, [R2] ;`.
#[derive(Debug, PartialEq, Eq)]
pub struct Instruction {
    /// With its modifiers: `LDG.E.128`.
    pub opcode: String,
    /// `R4, [R2]`.
    pub operands: String,
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

    /// The subroutine that it calls. ``CALL.REL.NOINC `(.L_x_1)``, to a label of the same function,
    /// is none: on sm_80 to sm_89 ptxas leaves some loops that way. It is a jump.
    pub fn callee(&self) -> Option<&str> {
        if self.base() != "CALL" || self.operands.starts_with("`(.L") {
            return None;
        }
        let name = self.operands.trim_matches(['`', '(', ')']);
        // ptxas numbers them: $__internal_0_$name
        Some(name.rsplit_once('$').map_or(name, |(_, name)| name))
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
    let mut inside = false;
    for line in listing.lines().map(str::trim) {
        if let Some(name) = entry(line) {
            entries.push(name.to_owned());
        } else if line.starts_with(".section") {
            inside = false;
        } else if let Some(name) = text_label(line) {
            inside = true;
            kernels.push(Kernel { name: name.to_owned(), code: Vec::new() });
        } else if inside && let (Some(kernel), Some(instruction)) = (kernels.last_mut(), instruction(line)) {
            kernel.code.push(instruction);
        }
    }
    kernels.retain(|kernel| entries.contains(&kernel.name));
    for kernel in &mut kernels {
        strip_padding(&mut kernel.code);
    }
    kernels
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
    u32::from_str_radix(address, 16).ok()?;
    let mut text = text.split_once(';')?.0.trim();
    if text.starts_with('@') {
        text = text.split_once(' ')?.1.trim_start();
    }
    let (opcode, operands) = text.split_once(' ').unwrap_or((text, ""));
    Some(Instruction { opcode: opcode.to_owned(), operands: operands.trim().to_owned() })
}

/// Behind the code stand a branch to itself and NOPs up to the end of a line of the cache.
fn strip_padding(code: &mut Vec<Instruction>) {
    while code.last().is_some_and(|last| last.base() == "NOP") {
        code.pop();
    }
    if code.last().is_some_and(|last| last.base() == "BRA") {
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
        assert_eq!(opcodes, ["MOV", "EXIT", "LDG", "LDG", "CALL", "CALL", "MUFU", "EXIT"]);
        assert_eq!(code[2].operands, "R4, [R2]");
        let widths: Vec<_> = code.iter().map(Instruction::width).collect();
        assert_eq!(widths, [32, 32, 128, 16, 32, 32, 32, 32]);
    }

    #[test]
    fn a_jump_is_not_a_call() {
        let kernels = read(LISTING);
        let callees: Vec<_> = kernels[0].code.iter().filter_map(Instruction::callee).collect();
        assert_eq!(callees, ["__cuda_sm3x_div_rn_noftz_f32_slowpath"]);
    }
}
