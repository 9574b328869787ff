//! A kernel's machine code with its loops: what one needs when a budget breaks.

use super::figures::Assembled;
use super::flow::{Region, Way};

/// Prints it: a bar at the left for each loop around a line, `c` for cold code (behind the
/// loop, or on the way to a subroutine, or behind a PMTRIG).
pub fn print(assembled: &Assembled) {
    let flow = &assembled.flow;
    let code = &assembled.kernel.code;
    println!("{} sm_{}: {}", assembled.name(), assembled.architecture, summary(assembled, &flow.body));
    for (index, block) in flow.blocks.iter().enumerate() {
        for (number, region) in flow.loops.iter().enumerate().filter(|(_, region)| region.header == index) {
            let (number, bars) = (number + 1, "|".repeat(region.depth));
            println!("{bars:<4} loop {number}: {}", summary(assembled, region));
        }
        let around: Vec<&Region> = flow.loops.iter().filter(|region| region.contains(index)).collect();
        let cold = if flow.is_cold(index) { 'c' } else { ' ' };
        for at in block.clone() {
            let instruction = &code[at];
            let targets: String = match &instruction.targets[..] {
                _ if !instruction.jumps() => String::new(),
                targets => {
                    targets.iter().map(|&target| format!(" -> {:04x}", code[target].address)).collect()
                }
            };
            println!(
                "{:<4}{cold} {:04x} {:>5} {} {}{targets}",
                "|".repeat(around.len()),
                instruction.address,
                instruction.guard,
                instruction.opcode,
                instruction.operands,
            );
        }
    }
    println!();
}

fn summary(assembled: &Assembled, region: &Region) -> String {
    let count = |blocks: Vec<usize>| assembled.code(&blocks).count();
    let all = (0..assembled.flow.blocks.len()).filter(|&block| region.contains(block)).collect();
    let hot = count(region.hot());
    format!(
        "{hot} instructions + {} cold, ways round {} to {}",
        count(all) - hot,
        count(assembled.round(region, Way::Shortest)),
        count(assembled.round(region, Way::Longest)),
    )
}
