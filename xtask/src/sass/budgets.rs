//! `kernels/budgets.toml`: what the machine code of each kernel may cost, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;

use super::device;
use super::entries::{Entry, matches};
use super::figures::{Assembled, Figures, MainLoop, is_wide_load};
use super::sizes::Sizes;
use crate::files::read;
use crate::root;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// Of the PTX.
    pub sizes: Sizes,
    every_kernel: Rules,
    #[serde(rename = "family")]
    families: Vec<Family>,
}

/// What holds for all kernels.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    /// Those with bounds for each kernel.
    architectures: Vec<Architecture>,
    /// Others, for which these rules hold, and no bounds: near relatives of the first.
    #[serde(default)]
    relatives: Vec<Architecture>,
    /// How many threads of a kernel a multiprocessor holds at once, at least, as a part of what it can hold.
    #[serde(default)]
    min_occupancy: f64,
    max_spilled_bytes: u32,
    max_stack_bytes: u32,
    forbidden: Vec<Opcode>,
}

/// Kernels that are built alike.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Family {
    /// Why they cost what they cost.
    reason: String,
    #[serde(default)]
    main_loop: MainLoop,
    /// How many blocks a launch puts on each multiprocessor at most.
    blocks_launched: u32,
    /// What a thread reads lies apart, so that there is nothing to load 128 bits of.
    #[serde(default)]
    reads_apart: bool,
    /// Anywhere in the kernel.
    #[serde(default)]
    forbidden: Vec<Opcode>,
    /// In the main loop, cold code apart.
    #[serde(default)]
    forbidden_in_main_loop: Vec<Opcode>,
    #[serde(rename = "budget")]
    budgets: Vec<Bounds>,
}

/// What kernels of a family may cost. Each bound is for all architectures alike, or one for each.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bounds {
    /// Names without the storage type; with it they are those of the entry points.
    kernels: Vec<String>,
    storage: Vec<String>,
    /// Which loop, for kernels that have several main ones: a kernel has a budget for each.
    #[serde(rename = "loop")]
    of_loop: Option<Loop>,
    /// That a thread has done after one way round the main loop.
    elements: u32,
    max_registers: Bound,
    /// For the shortest way round, where there is a short one.
    fast: Option<MostPerElement>,
    /// For the longest way round.
    general: MostPerElement,
    min_loads_before_mufu: Bound,
    max_narrow_loads: Bound,
    max_narrow_stores: Bound,
    min_kib_in_flight: Bound,
}

/// One of several main loops.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Loop {
    name: String,
    /// By which it is found: how many loads of 64 bits and more it has.
    loads: usize,
    /// Accesses of fewer bits are narrow.
    #[serde(default = "vector_bits")]
    bits: u32,
}

fn vector_bits() -> u32 {
    128
}

/// What holds for a kernel, or for one of its loops.
#[derive(Clone, Copy)]
pub struct Budget<'a> {
    family: &'a Family,
    bounds: &'a Bounds,
}

/// What an element may cost.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MostPerElement {
    instructions: Bound,
    mufu: Bound,
}

/// `64`, or `{ sm_75 = 80, sm_90 = 64 }`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Bound {
    Alike(f64),
    Each(BTreeMap<Architecture, f64>),
}

/// As in `sm_90`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String")]
struct Architecture(u32);

/// An opcode, which stands for those with more modifiers too; `*` stands for any characters.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Opcode(String);

/// One figure against its bound.
#[derive(Debug, PartialEq)]
pub struct Check {
    /// As the table says it.
    pub title: &'static str,
    pub figure: f64,
    pub bound: Option<f64>,
    pub is_good: bool,
}

impl Budgets {
    /// Those of kernels/budgets.toml.
    pub fn of_checkout() -> Result<Budgets, String> {
        let text = read(&root().join("kernels/budgets.toml"))?;
        Budgets::read(&text).map_err(|error| format!("kernels/budgets.toml: {error}"))
    }

    /// Reads the file; what is misspelt in it is an error.
    pub fn read(text: &str) -> Result<Budgets, String> {
        let budgets: Budgets = toml::from_str(text).map_err(|error| error.to_string())?;
        for architecture in budgets.every_kernel.architectures.iter().chain(&budgets.every_kernel.relatives) {
            if !device::architectures().any(|known| known == architecture.0) {
                let number = architecture.0;
                return Err(format!("xtask/src/sass/device.rs does not know what sm_{number} holds"));
            }
        }
        for family in &budgets.families {
            if family.reason.trim().is_empty() {
                return Err(format!(
                    "the family of {} gives no reason",
                    family.names().next().unwrap_or_default()
                ));
            }
            for bounds in &family.budgets {
                bounds.validate(&budgets.every_kernel.architectures)?;
            }
        }
        Ok(budgets)
    }

    /// The architectures that the kernels are assembled for.
    pub fn architectures(&self) -> impl Iterator<Item = u32> {
        let Rules { architectures, relatives, .. } = &self.every_kernel;
        architectures.iter().chain(relatives).map(|architecture| architecture.0)
    }

    /// Whether kernels have bounds of their own there.
    pub fn bounds_on(&self, architecture: u32) -> bool {
        self.every_kernel.architectures.contains(&Architecture(architecture))
    }

    /// Each entry point has one budget, or one for each of some loops; and each budget has its entry
    /// points.
    pub fn cover(&self, entries: &[Entry]) -> Result<(), String> {
        let mut faults = Vec::new();
        let mut names: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
        names.sort_unstable();
        names.dedup();
        for name in &names {
            let own: Vec<_> = self.all().filter(|bounds| bounds.are_for(name)).collect();
            let loops: BTreeSet<_> =
                own.iter().filter_map(|bounds| bounds.of_loop.as_ref()).map(|of| of.loads).collect();
            match own.len() {
                0 => faults.push(format!("{name} has no budget")),
                1 => {}
                count if count == loops.len() => {}
                count => faults.push(format!("{name} has {count} budgets")),
            }
        }
        let wanted = self.all().flat_map(Bounds::entry_points);
        faults.extend(
            wanted
                .filter(|name| !names.contains(&name.as_str()))
                .map(|name| format!("there is no kernel {name}")),
        );
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
    }

    fn all(&self) -> impl Iterator<Item = &Bounds> {
        self.families.iter().flat_map(|family| &family.budgets)
    }

    /// The budgets of an entry point.
    pub fn of(&self, name: &str) -> Vec<Budget<'_>> {
        let budgets = self.families.iter().flat_map(|family| {
            let own = family.budgets.iter().filter(|bounds| bounds.are_for(name));
            own.map(move |bounds| Budget { family, bounds })
        });
        budgets.collect()
    }

    /// What every kernel keeps: the rules that this one breaks.
    pub fn broken_rules(&self, assembled: &Assembled) -> Vec<String> {
        let rules = &self.every_kernel;
        let resources = &assembled.resources;
        let mut faults = Vec::new();
        if resources.spills > rules.max_spilled_bytes {
            faults.push(format!("{} bytes of registers are spilled to local memory", resources.spills));
        }
        if resources.stack > rules.max_stack_bytes {
            faults.push(format!("its stack takes {} bytes", resources.stack));
        }
        let held = device::occupancy(assembled.architecture, assembled.threads, resources).unwrap_or(0.0);
        if held < rules.min_occupancy {
            faults.push(format!(
                "a multiprocessor holds {:.0} % of its threads, less than {:.0} %",
                100.0 * held,
                100.0 * rules.min_occupancy
            ));
        }
        let budgets = self.of(assembled.name());
        let reads_apart = budgets.iter().any(|budget| budget.family.reads_apart);
        if assembled.kernel.count(is_wide_load) == 0 && !reads_apart {
            faults.push("no 128-bit load from global memory".to_owned());
        }
        let opcodes = || assembled.kernel.code.iter().map(|instruction| instruction.opcode.as_str());
        faults.extend(forbidden(&rules.forbidden, opcodes, "is forbidden"));
        // Where loops have budgets, no loop over vectors goes without.
        let loads: Vec<usize> =
            budgets.iter().filter_map(|budget| Some(budget.bounds.of_loop.as_ref()?.loads)).collect();
        if !loads.is_empty() {
            let loops =
                assembled.hot_loops().filter(|region| assembled.code(&region.hot()).any(is_wide_load));
            let others = loops.map(|region| assembled.loads(region)).filter(|count| !loads.contains(count));
            faults.extend(
                others.map(|count| format!("a loop with {count} loads of 64 bits and more has no budget")),
            );
        }
        faults
    }
}

impl Family {
    fn names(&self) -> impl Iterator<Item = String> {
        self.budgets.iter().flat_map(Bounds::entry_points)
    }
}

impl Bounds {
    fn entry_points(&self) -> impl Iterator<Item = String> {
        let storages = |kernel| self.storage.iter().map(move |storage| format!("{kernel}_{storage}"));
        self.kernels.iter().flat_map(storages)
    }

    fn are_for(&self, name: &str) -> bool {
        self.entry_points().any(|own| own == name)
    }

    /// What serde cannot see.
    fn validate(&self, architectures: &[Architecture]) -> Result<(), String> {
        let name = self.entry_points().next().ok_or("a budget has no kernels, or no storage")?;
        let fault = |what: &str| Err(format!("the budget of {name} {what}"));
        if self.elements == 0 {
            return fault("has no elements");
        }
        let ways = self.fast.iter().chain([&self.general]);
        let bounds = ways.flat_map(|way| [&way.instructions, &way.mufu]).chain([
            &self.max_registers,
            &self.min_loads_before_mufu,
            &self.max_narrow_loads,
            &self.max_narrow_stores,
            &self.min_kib_in_flight,
        ]);
        for bound in bounds {
            if let Bound::Each(each) = bound
                && !each.keys().eq(architectures)
            {
                return fault("has a bound that is not for each of the architectures, or for others");
            }
        }
        Ok(())
    }
}

impl<'a> Budget<'a> {
    /// Why it is as it is.
    pub fn reason(&self) -> &'a str {
        self.family.reason.trim()
    }

    /// What the table calls what it is for.
    pub fn title(&self, kernel: &str) -> String {
        match &self.bounds.of_loop {
            Some(of) => format!("{kernel}, {}", of.name),
            None => kernel.to_owned(),
        }
    }

    fn main_loop(&self) -> MainLoop {
        self.bounds.of_loop.as_ref().map_or(self.family.main_loop, |of| MainLoop::Loads(of.loads))
    }

    /// What the loop is called, where a kernel has several.
    pub fn loop_name(&self) -> Option<&'a str> {
        self.bounds.of_loop.as_ref().map(|of| of.name.as_str())
    }

    /// Whether the shortest way round does the work.
    pub fn has_fast_way(&self) -> bool {
        self.bounds.fast.is_some()
    }

    /// Those of its main loop.
    pub fn figures(&self, assembled: &Assembled) -> Figures {
        let bits = self.bounds.of_loop.as_ref().map_or_else(vector_bits, |of| of.bits);
        assembled.figures(self.main_loop(), bits, self.bounds.elements, self.family.blocks_launched)
    }

    /// All figures of a kernel against their bounds, in the order of [`TITLES`].
    pub fn checks(&self, assembled: &Assembled) -> Vec<Check> {
        let Figures { fast, general, loads_before_mufu, narrow_loads, narrow_stores, kib_in_flight, .. } =
            self.figures(assembled);
        let bounds = self.bounds;
        let short = bounds.fast.as_ref();
        let at_most = [
            (f64::from(assembled.resources.registers), Some(&bounds.max_registers)),
            (fast.instructions, short.map(|way| &way.instructions)),
            (fast.mufu, short.map(|way| &way.mufu)),
            (general.instructions, Some(&bounds.general.instructions)),
            (general.mufu, Some(&bounds.general.mufu)),
            (narrow_loads as f64, Some(&bounds.max_narrow_loads)),
            (narrow_stores as f64, Some(&bounds.max_narrow_stores)),
        ];
        let at_least = [
            (loads_before_mufu as f64, &bounds.min_loads_before_mufu),
            (kib_in_flight, &bounds.min_kib_in_flight),
        ];
        let value = |bound: &Bound| bound.on(assembled.architecture);
        let most = at_most.into_iter().map(|(figure, bound)| {
            let bound = bound.map(value);
            (figure, bound, bound.is_none_or(|most| figure <= most))
        });
        let least =
            at_least.into_iter().map(|(figure, bound)| (figure, Some(value(bound)), figure >= value(bound)));
        let all = TITLES.into_iter().zip(most.chain(least));
        all.map(|(title, (figure, bound, is_good))| Check { title, figure, bound, is_good }).collect()
    }

    /// What has no figure.
    pub fn broken_rules(&self, assembled: &Assembled) -> Vec<String> {
        let everywhere = || assembled.kernel.code.iter().map(|instruction| instruction.opcode.as_str());
        let mut faults = forbidden(&self.family.forbidden, everywhere, "is forbidden");
        let loops = assembled.main_loops(self.main_loop());
        let hot: Vec<usize> = loops.iter().flat_map(|region| region.hot()).collect();
        let in_loop = || assembled.code(&hot).map(|instruction| instruction.opcode.as_str());
        faults.extend(forbidden(
            &self.family.forbidden_in_main_loop,
            in_loop,
            "is forbidden in the main loop",
        ));
        match &self.bounds.of_loop {
            Some(of) if loops.len() != 1 => {
                let found = loops.len();
                faults.push(format!("{found} loops, not 1, have {} loads of 64 bits and more", of.loads));
            }
            None if loops.is_empty() => faults.push("no innermost loop has a 128-bit load".to_owned()),
            _ => {}
        }
        let short = self.figures(assembled).fast;
        if self.bounds.fast.is_some() && short.mufu < 1.0 {
            faults.push(format!(
                "the shortest way has {:.2} MUFU for each element: it leaves the work out, so its figures say nothing",
                short.mufu
            ));
        }
        faults
    }
}

/// The titles of a budget's checks.
pub const TITLES: [&str; 9] = [
    "registers",
    "fast instr",
    "fast MUFU",
    "instr",
    "MUFU",
    "narrow loads",
    "narrow stores",
    "loads before MUFU",
    "KiB in flight",
];

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No more digits than there are: 64, 20.38.
        let digits = |number: f64| ((number * 100.0).round() / 100.0).to_string();
        match self.bound {
            Some(bound) => write!(f, "{}/{}", digits(self.figure), digits(bound)),
            None => write!(f, "{}", digits(self.figure)),
        }
    }
}

impl Bound {
    fn on(&self, architecture: u32) -> f64 {
        match self {
            Bound::Alike(bound) => *bound,
            Bound::Each(each) => each[&Architecture(architecture)], // `validate` has seen to it
        }
    }
}

impl TryFrom<String> for Architecture {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let number = name.strip_prefix("sm_").and_then(|number| number.parse().ok());
        number.map(Architecture).ok_or_else(|| format!("{name} is no architecture, as in sm_90"))
    }
}

impl Opcode {
    fn is(&self, opcode: &str) -> bool {
        matches(&self.0, opcode) || matches(&format!("{}.*", self.0), opcode)
    }
}

/// Which of the opcodes are forbidden, and how often they stand there.
fn forbidden<'a, I: Iterator<Item = &'a str>>(
    list: &[Opcode],
    code: impl Fn() -> I,
    what: &str,
) -> Vec<String> {
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for opcode in code().filter(|opcode| list.iter().any(|listed| listed.is(opcode))) {
        *found.entry(opcode).or_default() += 1;
    }
    found.into_iter().map(|(opcode, count)| format!("{opcode} {what} and stands there {count} x")).collect()
}
