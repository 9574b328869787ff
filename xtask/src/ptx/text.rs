//! What is in the files of kernels/ptx: entry points, and the lines of their instructions.

use crate::files::{entries, has_extension, read};
use crate::root;

/// A file of kernels/ptx.
pub struct Text {
    /// As in `qfl.bf16.sm_80.ptx`.
    pub name: String,
    /// What the emulator knows the text by.
    pub hash: u64,
    pub lines: Vec<String>,
    pub entries: Vec<Entry>,
}

/// An entry point.
pub struct Entry {
    pub name: String,
    /// The numbers of the lines that hold an instruction, from 1, in order.
    pub instructions: Vec<u32>,
}

impl Text {
    /// All of kernels/ptx, by name.
    pub fn all() -> Result<Vec<Text>, String> {
        let mut texts = Vec::new();
        for path in entries(&root().join("kernels/ptx"))?.iter().filter(|path| has_extension(path, "ptx")) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            texts.push(Text::new(name, &read(path)?));
        }
        texts.sort_by(|a, b| a.name.cmp(&b.name));
        if texts.is_empty() { Err("kernels/ptx has no PTX".to_owned()) } else { Ok(texts) }
    }

    /// Reads a text as NVRTC writes it: at most one instruction a line.
    pub fn new(name: String, text: &str) -> Text {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let mut entries: Vec<Entry> = Vec::new();
        let (mut depth, mut in_entry) = (0, false);
        for (number, line) in (1..).zip(&lines) {
            let line = line.split("//").next().unwrap_or_default().trim();
            if let Some((_, rest)) = line.split_once(".entry ") {
                let name = rest.trim().trim_end_matches(['(', ')']).trim().to_owned();
                entries.push(Entry { name, instructions: Vec::new() });
                in_entry = true;
            }
            if in_entry && depth > 0 && is_instruction(line) {
                entries.last_mut().expect("there is one").instructions.push(number);
            }
            // Braces of a body or of a scope in it stand alone; others are operands.
            match line {
                "{" => depth += 1,
                "}" => {
                    depth -= 1;
                    in_entry &= depth > 0;
                }
                _ => {}
            }
        }
        Text { name, hash: hash(text.as_bytes()), lines, entries }
    }

    /// As in `qfl`.
    pub fn unit(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }

    pub fn line(&self, number: u32) -> &str {
        self.lines.get(number as usize - 1).map_or("", String::as_str)
    }
}

fn is_instruction(line: &str) -> bool {
    line.ends_with(';') && line.starts_with(|first: char| first == '@' || first.is_ascii_lowercase())
}

/// FNV-1a, as in the emulator's simt_decode.cpp.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_found() {
        let text = "//\n.version 8.0\n.visible .entry one_f32(\n\t.param .u64 one_f32_param_0\n)\n.maxntid 32, 1, 1\n\
                    {\n\t.reg .b32 \t%r<3>;\n\tmov.u32 \t%r1, 1;\n\n$L__BB0_1:\n\t{\n\t.reg .b32 %temp; \n\
                    \tmov.b64 \t{%temp, %r2}, %fd1;\n\t}\n\t@%p1 bra \t$L__BB0_1;\n\t// a comment;\n\tret;\n\n}\n\
                    \t// .globl\ttwo_f32\n.visible .entry two_f32()\n{\n\tret;\n}\n";
        let text = Text::new("unit.f32.sm_75.ptx".to_owned(), text);
        let found: Vec<_> = text.entries.iter().map(|e| (e.name.as_str(), e.instructions.clone())).collect();
        assert_eq!(found, [("one_f32", vec![9, 14, 16, 18]), ("two_f32", vec![24])]);
        assert_eq!(text.unit(), "unit");
    }
}
