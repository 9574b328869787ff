//! `gfocal decode`: the boxes that a detector's raw box logits say, and gradients of boxes to those of the logits.

mod report;
mod run;

use std::path::PathBuf;

use clap::Args;
use gfocal::decode;
use gfocal::head::BoxCoding;

use crate::assign::Place;
use crate::case::Case;
use crate::device::Device;
use crate::error::Result;
use crate::file::{Input, Output, Tensors};
use crate::floats::Dtype;
use crate::head::{
    BoxLevel, BoxesChoice, LevelArgs, LevelReader, Levels, Profile, Tensor, add_gradients, check_classes,
    check_coding, check_types,
};
use crate::report::json;
use crate::terminal;
use crate::values::{DeviceChoice, finite};
use crate::words::count;
use report::DecodeReport;
use run::Outcome;

const ABOUT: &str = "\
The file is that of `gfocal head`, of which are read for each level i = 0, 1, ...
  level{i}.box_logits  [B, 4K, H, W], or [B, H*W, 4K] with --image-size or anchors; channel side*K + bin,
                       sides left, top, right, bottom; 4 channels with --boxes exp or relu
  level{i}.points      [H*W, 2], anchor points in pixels, or level{i}.anchors [B, H*W, 4], boxes
                       around them; without these, anchor points are on a grid
or with --raw the one tensor raw, or level{i}.raw, whose channels after the first 4K are classes; and
  upstream             [B, A, 4], if gradients are wanted: the gradient with respect to the boxes
A is the positions of all levels, one level after another. What is beside the logits is used as F32, and
as F64 beside F64 logits. Options that say so have their defaults in the metadata, under the key case, as
those of `gfocal head`.

Examples:
  gfocal decode step.safetensors --output boxes.safetensors
  gfocal decode yolo.safetensors --profile ultralytics --raw --strides 8,16,32 --image-size 640x640";

#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub struct DecodeArgs {
    /// The .safetensors file that holds the box logits
    pub file: PathBuf,

    /// Where to compute: auto, cpu, cuda (the same as cuda:0) or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    /// Type to round the logits to, which is also the gradients'; f64 is for the CPU only [default: the file's type]
    #[arg(long, value_name = "TYPE", value_enum)]
    pub dtype: Option<Dtype>,

    #[command(flatten)]
    pub levels: LevelArgs,

    /// What upstream is multiplied by, as the loss scale of mixed precision
    #[arg(long, value_name = "S", value_parser = finite, allow_hyphen_values = true)]
    pub grad_scale: Option<f64>,

    /// File to write: boxes [B, A, 4], x1, y1, x2, y2 in pixels (F32, or F64 for F64 logits), and with upstream
    /// level{i}.grad_box_logits (or grad_raw, 0 for classes)
    #[arg(long, value_name = "OUT.safetensors")]
    pub output: Option<PathBuf>,

    /// One JSON object on standard output instead of a table
    #[arg(long)]
    pub json: bool,
}

/// The box logits of a pyramid.
pub struct Pyramid {
    profile: Profile,
    boxes: BoxesChoice,
    batch: usize,
    bins: usize,
    places: Vec<Place>,
    levels: Vec<BoxLevel>,
    /// Whether logits have those of classes beside them, and whether all levels were in one tensor.
    is_raw: bool,
    whole_raw: bool,
    /// `[B, A, 4]`, multiplied by the scale.
    upstream: Option<Vec<f64>>,
}

pub fn run(args: &DecodeArgs) -> Result<()> {
    let input = Input::read(&args.file)?;
    let output = args.output.as_deref().map(|path| Output::new(path, Some(&args.file))).transpose()?;
    let pyramid = Pyramid::read(&input, args)?;
    let (device, note) = Device::open(args.device, &[pyramid.dtype()], |_| decode::units())?;
    let outcome = run::on(&device, &pyramid)?;
    let exact = run::exactly(&pyramid)?;

    let report = DecodeReport::new(&pyramid, &device, &outcome, exact.as_ref());
    if let Some(mut output) = output {
        pyramid.add(&mut output, outcome);
        output.write(&json(&report))?;
    }
    let text = if args.json { json(&report) + "\n" } else { report.table() };
    terminal::finish(&text, [note, input.unread()?])
}

impl Pyramid {
    fn read(input: &Input, args: &DecodeArgs) -> Result<Pyramid> {
        let of_levels = &args.levels;
        check_coding(of_levels, &[])?;
        if of_levels.classes.is_some() && !of_levels.raw {
            return Err(input.head("only of --raw class logits are read: leave out --classes, or give --raw"));
        }
        let (tensors, case, profile) = (input.tensors()?, Case::read(input)?, of_levels.profile());
        let read = |reader: &LevelReader, outputs: Option<&_>| reader.read_boxes(outputs, args.dtype);
        let levels = Levels::read(input, &tensors, of_levels, &case, profile.offset(), "box_logits", read)?;
        let Levels { places, levels, axes, whole_raw, .. } = levels;
        if of_levels.raw {
            check_classes(input, of_levels, &case, axes.classes)?;
        }
        let types = |level: &BoxLevel| format!("box logits of {}", level.logits.numbers.dtype().name());
        check_types(input, levels.iter().map(types))?;
        let (batch, bins) = (axes.batch, axes.bins);
        let positions = places.iter().map(Place::positions).sum();
        let upstream = upstream(input, &tensors, args.grad_scale, [batch, positions])?;
        let (boxes, is_raw) = (of_levels.boxes(), of_levels.raw);
        Ok(Pyramid { profile, boxes, batch, bins, places, levels, is_raw, whole_raw, upstream })
    }

    fn coding(&self) -> BoxCoding {
        self.boxes.coding(self.bins)
    }

    fn dtype(&self) -> Dtype {
        self.levels[0].logits.numbers.dtype()
    }

    /// How many positions an image has.
    fn positions(&self) -> usize {
        self.places.iter().map(Place::positions).sum()
    }

    /// The results, the gradients under the names of the inputs.
    fn add(&self, output: &mut Output, outcome: Outcome) {
        output.add("boxes".to_owned(), &[self.batch, self.positions(), 4], &outcome.boxes);
        let shapes = self.levels.iter().map(|level| level.logits.shape.clone());
        let gradients = shapes.zip(outcome.gradients).map(|(shape, numbers)| Tensor { shape, numbers });
        let gradients: Vec<Tensor> = gradients.collect();
        if self.is_raw {
            return add_gradients(output, &gradients, self.whole_raw);
        }
        for (i, Tensor { shape, numbers }) in gradients.iter().enumerate() {
            output.add(format!("level{i}.grad_box_logits"), shape, numbers);
        }
    }
}

/// The gradient with respect to the boxes, if there is one.
fn upstream(
    input: &Input,
    tensors: &Tensors,
    scale: Option<f64>,
    [batch, positions]: [usize; 2],
) -> Result<Option<Vec<f64>>> {
    match (tensors.has("upstream"), scale) {
        (false, None) => return Ok(None),
        (false, Some(_)) => return Err(tensors.missing("upstream, which --grad-scale multiplies")),
        (true, _) => {}
    }
    let (shape, numbers) = tensors.floats("upstream")?;
    let expected = [batch, positions, 4];
    if shape != expected {
        let images = count(batch, "image", "images");
        let positions = count(positions, "position", "positions");
        return Err(input.head(format!(
            "upstream has the shape {shape:?}; the boxes of {images} with {positions} have {expected:?}"
        )));
    }
    let scale = scale.unwrap_or(1.0);
    Ok(Some(numbers.iter().map(|number| scale * number).collect()))
}
