//! The ways through a kernel's machine code: basic blocks, loops, cold blocks, and the shortest and
//! the longest way once round a loop.

use std::collections::BTreeSet;
use std::ops::Range;

use super::listing::Kernel;

/// A way from one basic block to another.
#[derive(Clone, Copy, Debug)]
struct Edge {
    to: usize,
    /// By a jump that some threads do not take.
    conditional: bool,
}

/// A set of blocks; as long as there are blocks.
type Set = Vec<bool>;

/// A kernel's basic blocks and loops.
pub struct Flow {
    /// By their positions in the code.
    pub blocks: Vec<Range<usize>>,
    /// The whole kernel without the subroutines that it calls, as if it were a loop: what ends the
    /// thread leads back to the first block.
    pub body: Region,
    /// By the address of the header; an outer one before those inside.
    pub loops: Vec<Region>,
}

/// A loop: blocks that can all reach each other.
pub struct Region {
    /// The block where a way round begins.
    pub header: usize,
    /// 1 for those that are in no other.
    pub depth: usize,
    /// Whether there is no loop inside.
    pub innermost: bool,
    nodes: Set,
    cold: Set,
    /// The ways inside.
    next: Vec<Vec<Edge>>,
}

/// Which way round.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The one with the fewest instructions.
    Shortest,
    /// The one with the most.
    Longest,
}

impl Flow {
    pub fn of(kernel: &Kernel) -> Flow {
        let blocks = basic_blocks(kernel);
        let next = edges(kernel, &blocks);
        let all = vec![true; blocks.len()];
        let nodes = reach(&next, 0, &all);
        let ends = |block: &Range<usize>| {
            let last = &kernel.code[block.end - 1];
            last.ends() && !last.conditional()
        };
        let ends: Set = blocks.iter().map(ends).collect();

        let mut loops = Vec::new();
        find_loops(&next, &nodes, &nodes, 1, &mut loops);
        loops.sort_by_key(|found| (found.header, found.depth));
        for index in 0..loops.len() {
            let (outer, rest) = loops[index..].split_first_mut().expect("the index is below the length");
            outer.innermost =
                rest.iter().all(|other| other.depth <= outer.depth || !outer.nodes[other.header]);
            outer.find_cold(kernel, &blocks, &ends);
        }
        let mut back = next;
        for (node, ways) in back.iter_mut().enumerate().filter(|(node, _)| ends[*node]) {
            debug_assert!(ways.is_empty(), "block {node} ends the thread");
            ways.push(Edge { to: 0, conditional: false });
        }
        let mut body = Region::new(0, nodes, &back, 0);
        body.innermost = loops.is_empty();
        body.find_cold(kernel, &blocks, &ends);
        Flow { blocks, body, loops }
    }

    /// Whether a loop around the block can do without it.
    pub fn is_cold(&self, block: usize) -> bool {
        self.loops.iter().any(|region| region.is_cold(block))
    }
}

/// The code is cut at labels and behind jumps.
fn basic_blocks(kernel: &Kernel) -> Vec<Range<usize>> {
    let code = &kernel.code;
    let mut starts: BTreeSet<usize> = kernel.labelled.clone();
    starts.insert(0);
    let cuts = (1..code.len()).filter(|&at| code[at - 1].jumps() || code[at - 1].ends());
    starts.extend(cuts);
    let ends = starts.iter().copied().skip(1).chain([code.len()]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

/// Where each block leads to. After a CALL it goes on behind it. So it does after BSYNC: ptxas puts
/// the instruction where the threads meet right there.
fn edges(kernel: &Kernel, blocks: &[Range<usize>]) -> Vec<Vec<Edge>> {
    let number = |at: usize| blocks.iter().position(|block| block.start == at);
    let mut next = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let last = &kernel.code[block.end - 1];
        let conditional = last.conditional();
        let mut ways: Vec<Edge> = Vec::new();
        if last.jumps() {
            let targets = last.targets.iter().filter_map(|&at| number(at));
            ways.extend(targets.map(|to| Edge { to, conditional }));
        }
        let goes_on = conditional || !(last.jumps() || last.ends());
        if goes_on && index + 1 < blocks.len() {
            ways.retain(|edge| edge.to != index + 1);
            ways.push(Edge { to: index + 1, conditional: false });
        }
        next.push(ways);
    }
    next
}

/// The blocks among `allowed` that a way leads to from `start`, with `start` itself.
fn reach(next: &[Vec<Edge>], start: usize, allowed: &[bool]) -> Set {
    let mut seen = vec![false; next.len()];
    let mut open = vec![start];
    seen[start] = true;
    while let Some(node) = open.pop() {
        for edge in &next[node] {
            if allowed[edge.to] && !seen[edge.to] {
                seen[edge.to] = true;
                open.push(edge.to);
            }
        }
    }
    seen
}

/// The same ways the other way round.
fn reversed(next: &[Vec<Edge>]) -> Vec<Vec<Edge>> {
    let mut back = vec![Vec::new(); next.len()];
    for (from, ways) in next.iter().enumerate() {
        for edge in ways {
            back[edge.to].push(Edge { to: from, ..*edge });
        }
    }
    back
}

fn members(set: &[bool]) -> impl Iterator<Item = usize> {
    set.iter().enumerate().filter(|(_, is_in)| **is_in).map(|(node, _)| node)
}

/// Finds the loops among the blocks `within`, and those inside them: without its header, what still
/// goes round is a loop inside. `reached` are all blocks that the kernel can come to.
fn find_loops(next: &[Vec<Edge>], reached: &[bool], within: &[bool], depth: usize, found: &mut Vec<Region>) {
    let back = reversed(next);
    let mut left = within.to_vec();
    for node in 0..next.len() {
        if !left[node] {
            continue;
        }
        let (onward, backward) = (reach(next, node, &left), reach(&back, node, &left));
        let round: Set = onward.iter().zip(&backward).map(|(a, b)| *a && *b).collect();
        members(&round).for_each(|node| left[node] = false);
        let alone = members(&round).count() == 1;
        if alone && next[node].iter().all(|edge| edge.to != node) {
            continue;
        }
        let is_entered =
            |&node: &usize| node == 0 || back[node].iter().any(|edge| reached[edge.to] && !round[edge.to]);
        let header = members(&round).find(is_entered).unwrap_or(node);
        let mut inside = round.clone();
        inside[header] = false;
        found.push(Region::new(header, round, next, depth));
        find_loops(next, reached, &inside, depth + 1, found);
    }
}

impl Region {
    fn new(header: usize, nodes: Set, next: &[Vec<Edge>], depth: usize) -> Region {
        let inside = |(node, ways): (usize, &Vec<Edge>)| {
            let ways = ways.iter().filter(|edge| nodes[node] && nodes[edge.to]);
            ways.copied().collect()
        };
        let next = next.iter().enumerate().map(inside).collect();
        let cold = vec![false; nodes.len()];
        Region { header, depth, innermost: true, nodes, cold, next }
    }

    pub fn contains(&self, block: usize) -> bool {
        self.nodes[block]
    }

    pub fn is_cold(&self, block: usize) -> bool {
        self.cold[block]
    }

    /// The blocks that are not cold, by address.
    pub fn hot(&self) -> Vec<usize> {
        members(&self.nodes).filter(|&node| !self.cold[node]).collect()
    }

    /// The blocks of one way round without cold ones, by address; inner loops are gone through once.
    /// `cost` is what a block adds to the length; of two ways, the one is taken that comes first.
    pub fn round<C>(&self, way: Way, cost: impl Fn(usize) -> C) -> Vec<usize>
    where
        C: Copy + Default + Ord + std::ops::Add<Output = C>,
    {
        // The best way from a block to the end: its cost, and the block behind. A block is looked at
        // after all that it leads to, but for the jumps back of inner loops, which are left out.
        let mut best: Vec<Option<(C, Option<usize>)>> = vec![None; self.nodes.len()];
        for node in self.hot_in_postorder() {
            let mut ways = Vec::new();
            for edge in &self.next[node] {
                if edge.to == self.header {
                    ways.push((C::default(), None));
                } else if let Some((rest, _)) = best[edge.to] {
                    ways.push((rest, Some(edge.to)));
                }
            }
            let chosen = match way {
                Way::Shortest => ways.into_iter().min(),
                Way::Longest => ways.into_iter().max(),
            };
            best[node] = chosen.map(|(rest, behind)| (cost(node) + rest, behind));
        }
        let mut blocks = BTreeSet::new();
        let mut at = best[self.header].map(|_| self.header);
        while let Some(node) = at {
            blocks.insert(node);
            at = best[node].and_then(|(_, behind)| behind);
        }
        // Without a way that is not cold, take all that is not.
        if blocks.is_empty() { self.hot() } else { blocks.into_iter().collect() }
    }

    /// The hot blocks that a way leads to from the header, each after those that it leads to.
    fn hot_in_postorder(&self) -> Vec<usize> {
        let mut order = Vec::new();
        let mut seen = vec![false; self.nodes.len()];
        seen[self.header] = true;
        let mut open = vec![(self.header, 0)];
        while let Some((node, tried)) = open.last_mut() {
            let Some(edge) = self.next[*node].get(*tried) else {
                order.push(*node);
                open.pop();
                continue;
            };
            *tried += 1;
            if !seen[edge.to] && !self.cold[edge.to] {
                seen[edge.to] = true;
                open.push((edge.to, 0));
            }
        }
        order
    }

    /// Marks the blocks that a way round can do without, and that stand apart, or lead to a call of a
    /// subroutine, or can only be come to through a PMTRIG: by that the kernel itself says what it
    /// seldom does. `ends` are the blocks that end the thread.
    fn find_cold(&mut self, kernel: &Kernel, blocks: &[Range<usize>], ends: &[bool]) {
        let back = reversed(&self.next);
        let nodes: Vec<usize> = members(&self.nodes).collect();
        // What can only be come to through a block.
        let behind = |node: usize| -> Set {
            if node == self.header {
                return self.nodes.clone();
            }
            let mut others = self.nodes.clone();
            others[node] = false;
            let without = reach(&self.next, self.header, &others);
            self.nodes.iter().zip(without).map(|(is_in, reached)| *is_in && !reached).collect()
        };
        let behind: Vec<Set> = (0..self.nodes.len())
            .map(|node| if self.nodes[node] { behind(node) } else { Vec::new() })
            .collect();
        let always = |node: usize| back[self.header].iter().all(|last| behind[node][last.to]);
        let optional: Vec<usize> = nodes.iter().copied().filter(|&node| !always(node)).collect();

        // Apart: outside the stretch of blocks around the header, entered by conditional jumps only.
        let mut stretch = self.header..=self.header;
        while *stretch.start() > 0 && self.nodes[stretch.start() - 1] {
            stretch = stretch.start() - 1..=*stretch.end();
        }
        while self.nodes.get(stretch.end() + 1) == Some(&true) && !ends[*stretch.end()] {
            stretch = *stretch.start()..=stretch.end() + 1;
        }
        let mut apart = vec![false; self.nodes.len()];
        for &node in &optional {
            apart[node] = !stretch.contains(&node) && !ends[node];
        }
        loop {
            let slipped_into = |node: &usize| {
                apart[*node] && back[*node].iter().any(|edge| !edge.conditional && !apart[edge.to])
            };
            let Some(node) = optional.iter().copied().find(slipped_into) else { break };
            apart[node] = false;
        }
        self.cold = apart;

        let holds =
            |node: usize, base: &str| kernel.code[blocks[node].clone()].iter().any(|i| i.base() == base);
        for rare in optional.iter().copied().filter(|&node| holds(node, "PMTRIG")) {
            members(&behind[rare]).for_each(|node| self.cold[node] = true);
        }
        for call in optional.iter().copied().filter(|&node| holds(node, "CALL")) {
            let mut others = self.nodes.clone();
            others[call] = false;
            let avoids = reach(&back, self.header, &others); // may finish without the call
            for &node in optional.iter().filter(|&&node| !avoids[node] && behind[node][call]) {
                members(&behind[node]).for_each(|node| self.cold[node] = true);
            }
        }
    }
}
