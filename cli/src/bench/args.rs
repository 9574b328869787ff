//! The options of `gfocal bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use gfocal_bench::{Op, Pass, Size};

use crate::values::{DeviceChoice, DtypeChoice};

const ABOUT: &str = "\
What is computed: the sum of the losses with a weight for each row, and its gradient; for
integral the expectation of each row, and its gradient; for head a training step of
mmdetection's GFLHead, from the raw outputs of all levels (NCHW, 17 bins) and given labels to
the losses and both gradients.

Rows of head are the anchors of all levels and images, columns the classes. A multiple of 22300
rows is so many images of COCO of 800x1333 pixels, with levels of 100x167, 50x84, 25x42, 13x21
and 7x11 positions at strides 8 to 128. Any other number is one image, whose coarser levels have
64, 16, 4 and 1 of 341 rows, rounded down, and the finest the rest.

Data: random, the same in every run, as at the start of training. Logits of QFL are N(-4.6, 1),
1 % of the rows are positives of a random class with a quality from 0.3 to 1; logits of DFL and
integral are N(0, 1), targets uniform over the bins. Class logits of head are as those of QFL,
box logits as those of DFL; 0.5 % of the anchors of each level, and one at least, are positives,
up to nine around the centre of an object. Weights are from 0.5 to 1.5, for head 1, as assigners
give them.

Bytes: those that the operation itself must move: logits once, the gradient once, 8 bytes of
label for QFL (the qualities of the few positives are ignored) or 4 of target for DFL, 4 of
weight. For head: class logits once, both gradients once, 8 bytes of label and 4 of weight, and
of positives their box logits and 16 bytes of target.

Ceilings: a copy that moves as many bytes, half read and half written, and for forward passes a
read of as many bytes, measured beside each case. On the CPU by all cores or by one, whichever
is faster, over the same buffers again and again, as the losses are; on CUDA by the driver's
copy from device to device, and by a kernel that only reads.

CUDA: replays of a graph of launches that each have buffers of their own, four times the L2
cache in all or 512 sets, between two events. Without events (drivers before CUDA 12.8), a note
says so.

Examples:
  gfocal bench --device cpu --ops qfl --dtype f32
  gfocal bench --sizes 134400x80,1075200x80 --ops qfl --passes forward_backward --format json
  gfocal bench --device cuda --check-only --ops head --sizes 22300x80
  gfocal bench --plot bench.svg";

#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub struct BenchArgs {
    /// What to time: auto, cpu, cuda (the same as cuda:0) or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    /// Operations, with commas between
    #[arg(long, value_name = "OPS", value_enum, value_delimiter = ',', default_value = "qfl,dfl,head")]
    pub ops: Vec<Op>,

    /// Passes, with commas between; a pass that an operation has not is left out [default: forward and
    /// forward_backward, for integral forward and backward]
    #[arg(long, value_name = "PASSES", value_enum, value_delimiter = ',')]
    pub passes: Vec<Pass>,

    /// Sizes, as 8400x80, with commas between, for all of --ops [default: 8400, 33600 and 134400 x 80 for QFL;
    /// 4096, 33600 and 262144 x 17 for DFL and integral; 22300, 89200 and 356800 x 80 for head]
    #[arg(long, value_name = "ROWSxCOLUMNS", value_delimiter = ',')]
    pub sizes: Vec<Size>,

    /// Types of the logits, with commas between
    #[arg(long, value_name = "TYPES", value_enum, value_delimiter = ',', default_value = "f32,f16,bf16")]
    pub dtype: Vec<DtypeChoice>,

    /// How long to time each case, in seconds; at least ten samples are taken
    #[arg(long, value_name = "S", value_parser = seconds, allow_hyphen_values = true, default_value = "1")]
    pub seconds: f64,

    /// How to print
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "table")]
    pub format: Format,

    /// Picture to draw: a roofline, and times over the number of rows
    #[arg(long, value_name = "FILE.svg", value_parser = svg)]
    pub plot: Option<PathBuf>,

    /// Folder of PTX files named as those of kernels/ptx, such as qfl.bf16.sm_80.ptx, which take the
    /// place of the kernels in this command: to compare changes of kernels. They must take the same
    /// parameters
    #[arg(long, value_name = "DIR")]
    pub kernels: Option<PathBuf>,

    /// On CUDA, time calls one after the other by the clock on the wall, as a program makes them, and not
    /// replays of a graph; tracked: while cudarc orders the use of each buffer by events
    #[arg(long, value_name = "HOW", value_enum)]
    pub calls: Option<Calls>,

    /// Check the results of calls and of replayed graphs, and time nothing; on an emulated GPU too
    #[arg(long, conflicts_with_all = ["plot", "seconds", "format"])]
    pub check_only: bool,

    /// Time without checking first: for profilers, under which a check takes long
    #[arg(long, conflicts_with = "check_only")]
    pub no_check: bool,
}

/// What `--calls` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Calls {
    /// Without events
    Untracked,
    /// With cudarc's event tracking, in a context of several streams
    Tracked,
}

/// What `--format` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// A line of names and one line for each case
    Csv,
    /// An array of objects
    Json,
}

fn seconds(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| (0.001..=600.0).contains(value));
    value.ok_or_else(|| "it must be a number from 0.001 to 600".to_owned())
}

fn svg(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let is_svg = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg"));
    if is_svg { Ok(path) } else { Err("the picture is an SVG: name it FILE.svg".to_owned()) }
}
