//! `cargo xtask model`: how long the operations should take on a GPU, by arithmetic on the machine code, before
//! anybody has run them there. A run then says where the arithmetic is wrong, which is more than a figure
//! without an expectation says.

mod cases;
mod grids;
mod machines;
#[cfg(test)]
mod tests;
mod time;

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::Args;
use serde::Serialize;

use crate::files;
use crate::root;
use crate::sass::{Measured, aligned, measure};
use cases::Case;
use grids::Rule;
use machines::{ISSUED, LAUNCH, MACHINES, Machine, PORT, REDUCTION, SPECIAL};

const FOLDER: &str = "benches/record/prediction";

/// What `cargo xtask model` takes.
#[derive(Args)]
pub struct Options {
    /// For which GPU
    #[arg(long, value_name = "GPU", default_value = "h200", value_parser = ["h200", "a100", "rtx4090"])]
    device: String,
    /// Print JSON, a record a line
    #[arg(long, conflicts_with = "write")]
    json: bool,
    /// As if blocks asked for the logits of the next round before they compute this one
    #[arg(long, conflicts_with = "write")]
    prefetch: bool,
    /// Put table and JSON for every GPU into benches/record/prediction
    #[arg(long, conflicts_with = "device")]
    write: bool,
}

/// What is foretold of a case. The names of the fields are those in JSON; the first are those of `gfocal bench`.
#[derive(Debug, Serialize)]
struct Prediction {
    op: String,
    pass: &'static str,
    dtype: &'static str,
    rows: u64,
    columns: u64,
    bytes: u64,
    copy_us: f64,
    least_us: f64,
    most_us: f64,
    least_percent_of_copy: f64,
    most_percent_of_copy: f64,
    /// Of the time, before and after the work.
    fixed_us: f64,
    /// Of the launch that moves the logits: its blocks, and how much of the rounds of as many as can run is used.
    blocks: u64,
    filled_percent: f64,
    /// The same, where QFL's blocks would share whole tiles.
    tiled_filled_percent: Option<f64>,
    /// Asked for at once on a multiprocessor.
    kib_in_flight: f64,
    /// How long instructions and special functions take, of what the bytes take.
    issue_percent: f64,
    mufu_percent: f64,
}

pub fn run(options: &Options) -> Result<(), String> {
    if options.write {
        return MACHINES.iter().try_for_each(write);
    }
    let machine = MACHINES.iter().find(|machine| machine.key == options.device);
    let machine = machine.ok_or("there is no such GPU in xtask/src/model/machines.rs")?;
    let predictions = predictions(machine, options.prefetch)?;
    if options.prefetch && !options.json {
        println!("As if blocks asked for the next round before they compute, which they do not:");
    }
    print!("{}", if options.json { json(&predictions) } else { text(machine, &predictions) });
    Ok(())
}

fn write(machine: &Machine) -> Result<(), String> {
    let predictions = predictions(machine, false)?;
    let folder = root().join(FOLDER);
    files::create_folder(&folder)?;
    for (kind, content) in [("txt", text(machine, &predictions)), ("json", json(&predictions))] {
        let name = format!("{}.{kind}", machine.key);
        files::write(&folder.join(&name), content)?;
        println!("wrote {FOLDER}/{name}");
    }
    Ok(())
}

fn predictions(machine: &Machine, prefetch: bool) -> Result<Vec<Prediction>, String> {
    let cases = Case::all();
    let wanted: Vec<_> = cases.iter().flat_map(Case::kernels).collect();
    let measured = measure(machine.architecture, |name| wanted.iter().any(|(kernel, _)| kernel == name))?;
    let figures: BTreeMap<_, _> =
        measured.iter().map(|one| ((one.name.as_str(), one.of_loop.as_deref()), one)).collect();
    let of_case = |case: &Case| {
        let own = case.kernels().into_iter().map(|(kernel, of_loop)| {
            let found = figures.get(&(kernel.as_str(), of_loop)).copied();
            found.ok_or_else(|| {
                format!("kernels/budgets.toml has no {kernel} {}", of_loop.unwrap_or_default())
            })
        });
        Ok(predict(case, machine, &own.collect::<Result<Vec<_>, String>>()?, prefetch))
    };
    cases.iter().map(of_case).collect()
}

fn predict(case: &Case, machine: &Machine, figures: &[&Measured], prefetch: bool) -> Prediction {
    let mut launches = case.launches(machine, figures, Rule::Steps);
    if prefetch {
        launches.iter_mut().for_each(|launch| launch.under_way = 2);
    }
    let tiled = case.launches(machine, figures, Rule::Tiles);
    let time = cases::time(&launches, machine);
    let (copy_us, main, figure) =
        (machine.copy_us(case.bytes() as f64), &launches[launches.len() - 1], figures[figures.len() - 1]);
    let [issue, mufu] = main.arithmetic(machine);
    let of_memory = |us: f64| 100.0 * us / main.memory(machine);
    let resident = main.share.blocks as f64 / f64::from(machine.multiprocessors);
    Prediction {
        op: case.op.to_string(),
        pass: case.pass(),
        dtype: case.dtype,
        rows: case.rows,
        columns: case.columns,
        bytes: case.bytes(),
        copy_us: rounded(copy_us),
        least_us: rounded(time.least),
        most_us: rounded(time.most),
        least_percent_of_copy: rounded(100.0 * copy_us / time.most),
        most_percent_of_copy: rounded(100.0 * copy_us / time.least),
        fixed_us: rounded(launches.iter().map(|launch| launch.fixed(machine)).sum()),
        blocks: main.share.blocks,
        filled_percent: rounded(100.0 * main.share.filled()),
        tiled_filled_percent: (case.op == cases::Op::Qfl).then(|| rounded(100.0 * tiled[0].share.filled())),
        kib_in_flight: rounded(resident * figure.bytes_of_block / 1024.0),
        issue_percent: rounded(of_memory(issue)),
        mufu_percent: rounded(of_memory(mufu)),
    }
}

/// No more digits than mean something.
fn rounded(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

fn json(predictions: &[Prediction]) -> String {
    let lines: Vec<_> =
        predictions.iter().map(|one| serde_json::to_string(one).expect("numbers and names")).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

const HEADER: [&str; 12] = [
    "",
    "size",
    "MB",
    "copy us",
    "us",
    "% of copy",
    "fixed us",
    "blocks",
    "filled %",
    "by tile %",
    "KiB in flight",
    "issue, MUFU %",
];

fn text(machine: &Machine, predictions: &[Prediction]) -> String {
    let mut table = vec![HEADER.map(str::to_owned).to_vec()];
    for one in predictions {
        let tiled = one.tiled_filled_percent.map_or("-".to_owned(), |percent| format!("{percent:.0}"));
        table.push(vec![
            format!("{} {} {}", one.op, one.pass, one.dtype),
            format!("{}x{}", one.rows, one.columns),
            format!("{:.1}", one.bytes as f64 / 1e6),
            format!("{:.1}", one.copy_us),
            format!("{:.1} to {:.1}", one.least_us, one.most_us),
            format!("{:.0} to {:.0}", one.least_percent_of_copy, one.most_percent_of_copy),
            format!("{:.1}", one.fixed_us),
            one.blocks.to_string(),
            format!("{:.0}", one.filled_percent),
            tiled,
            format!("{:.0}", one.kib_in_flight),
            format!("{:.0}, {:.0}", one.issue_percent, one.mufu_percent),
        ]);
    }
    let Machine { key, name, architecture, multiprocessors, ghz, copy, latency, sources } = machine;
    let mut text = String::new();
    let _ = write!(
        text,
        "What `cargo xtask model --device {key}` foretells for an {name}. No run has gone into it.\n\n{}\n\
Assumptions
- {multiprocessors} multiprocessors at {ghz} GHz, which issue {ISSUED} instructions of threads in a cycle and {SPECIAL} special
  functions, and take {PORT} bytes from the L2 cache; a copy moves {:.2} TB/s:
  {sources}.
- A launch costs {LAUNCH} us, the first load {latency} us; fence, ticket and the sum of the partials {REDUCTION} us. A copy costs
  launch and load. The head is two launches.
- Registers, blocks of a multiprocessor, instructions and bytes in flight are those of the committed PTX, assembled for
  sm_{architecture}; grids are those of src/*/launch.rs, with as many blocks as fit.
- Data as `gfocal bench` makes it: a warp goes the short way if all its logits are at most -2, which are 55 % of the
  vectors of warps in f32, and 30 % in 16 bits. Beside the budgets' figures QFL takes 2.4 instructions an element to read
  targets and for labelled rows, the head 0.6.
- At best bytes, instructions, special functions and waiting overlap, and the slowest of them counts. At worst blocks wait
  {latency} us for each round of loads and then queue for memory and for issue (mean value analysis), the last round takes
  as long as the others, and the instructions of one round overlap with nothing.
- Phase one of the head waits for labels in each round; a warp has one positive at least, and two in each other round at
  most, with 3 to 6 cycles an instruction.
Not in the model: caches (the bench goes past the L2 cache), the driver's choice of carve-out, conflicts in shared memory, rows
of the head's small levels that are read scalar by scalar, and clocks that fall under load.

filled: how much of the rounds of as many blocks as can run at once is used; by tile: if QFL's blocks shared whole tiles of
four steps. KiB in flight: asked for at once on a multiprocessor. issue, MUFU: what instructions and
special functions take, of what the bytes take.
",
        aligned(&table),
        copy / 1e12,
    );
    text
}
