//! The file to read: all settings, and the training loop.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use clap::ValueEnum;
use cpu_time::ThreadTime;
use gfocal_candle::{GroundTruth, Report, Targets};
use serde::{Deserialize, Serialize};

use super::losses::Losses;
use super::model::{Model, Outputs};
use super::plain;
use super::scenes::{SIZE, Scenes};

/// All numbers of a run. What is compared differs in `arm` alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    pub arm: Arm,
    pub assigner: Assignment,
    /// Of the first weights and of the scenes: all arms of a seed see the same scenes in the same order.
    pub seed: u32,
    pub steps: usize,
    pub scenes: Scenes,
    /// Of the logits and of their gradients. Activations and weights are f32.
    pub dtype: Storage,
    /// Whose operations the losses are made of.
    pub losses: Operations,

    /// Images of a step, each a new scene.
    pub batch: usize,
    /// AdamW; the rate rises for `warm_up` steps, then falls as a cosine to 0.
    pub learning_rate: f64,
    pub warm_up: usize,
    pub betas: [f64; 2],
    /// Of matrices.
    pub weight_decay: f64,
    /// The longest gradient of all weights together.
    pub max_norm: f64,

    /// Of a box side, 0 to 7 strides.
    pub bins: usize,
    /// Width of an anchor of ATSS in strides: half the paper's, so that objects are spread over all levels.
    pub anchor_scale: f32,
    /// FCOS: how far from the middle of a box a point may be, strides.
    pub centre_radius: f32,
    /// How many anchors a box is given that the assignment leaves without.
    pub fallback: usize,

    /// What the loss is multiplied by at first with 16-bit logits; it is doubled after so many good steps, and halved
    /// when a gradient is not finite, which skips the step.
    pub loss_scale: f64,
    pub loss_scale_steps: usize,
    /// A step whose gradients are made to overflow.
    pub overflow_at: Option<usize>,

    /// Held-out scenes.
    pub test_scenes: usize,
    /// Detections need a class score above it.
    pub least_score: f32,
    /// IoU above which the worse of two detections of a class goes.
    pub suppress_iou: f32,
    /// Detections of an image.
    pub most_detections: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            arm: Arm::Both,
            assigner: Assignment::Atss,
            seed: 1,
            steps: 1200,
            scenes: Scenes::Plain,
            dtype: Storage::F32,
            losses: Operations::Gfocal,
            batch: 8,
            learning_rate: 3e-3,
            warm_up: 50,
            betas: [0.9, 0.99],
            weight_decay: 0.05,
            max_norm: 10.0,
            bins: 8,
            anchor_scale: 4.0,
            centre_radius: 1.5,
            fallback: 4,
            loss_scale: 65536.0,
            loss_scale_steps: 200,
            overflow_at: None,
            test_scenes: 400,
            least_score: 0.02,
            suppress_iou: 0.6,
            most_detections: 100,
        }
    }
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// Focal loss and centerness; four numbers a box, exp(z) strides each.
    Base,
    /// The same with distributions in place of numbers, trained by DFL too.
    Dfl,
    /// Four numbers a box; one score for class and quality, trained by QFL.
    Qfl,
    /// Generalized Focal Loss.
    Both,
    /// Control: base with the box loss weighted by the largest class score, as with QFL.
    BaseWeighted,
    /// A stronger base: a branch that says the IoU of the box, in place of centerness.
    BaseIou,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Assignment {
    Atss,
    Fcos,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    F32,
    F16,
    Bf16,
}

impl From<Storage> for DType {
    fn from(storage: Storage) -> DType {
        match storage {
            Storage::F32 => DType::F32,
            Storage::F16 => DType::F16,
            Storage::Bf16 => DType::BF16,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operations {
    Gfocal,
    /// candle's own, one formula after the other; arm `both` alone.
    Candle,
}

/// Its name on the command line.
pub fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Settings {
    pub fn check(&self) -> Result<()> {
        if self.steps == 0 || self.seed == 0 {
            bail!("--steps {} and --seed {}: both must be 1 or more", self.steps, self.seed);
        }
        if let Some(step) = self.overflow_at.filter(|_| self.dtype != Storage::F16) {
            bail!("--overflow-at {step} is for --dtype f16: {} does not overflow", name(self.dtype));
        }
        if let Some(step) = self.overflow_at.filter(|&step| step >= self.steps) {
            bail!("--overflow-at {step}: there are steps 0 to {}", self.steps - 1);
        }
        if self.losses == Operations::Candle && self.arm != Arm::Both {
            bail!("--losses candle has the formulas of --arm both, not of {}", name(self.arm));
        }
        Ok(())
    }
}

/// Images, and what is in them.
pub struct Batch {
    pub images: Tensor,
    pub truth: GroundTruth,
}

impl Batch {
    pub fn new(scenes: Scenes, numbers: impl IntoIterator<Item = u64>) -> Result<Batch> {
        let (mut pixels, mut boxes, mut labels, mut image) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut count = 0;
        for scene in numbers.into_iter().map(|number| scenes.scene(number)) {
            pixels.extend(scene.pixels);
            for object in scene.objects {
                boxes.extend(object.corners);
                labels.push(object.class as i64);
                image.push(count);
            }
            count += 1;
        }
        let (objects, cpu) = (labels.len(), &Device::Cpu);
        let truth = GroundTruth::new(
            Tensor::from_vec(boxes, (objects, 4), cpu)?,
            Tensor::from_vec(labels, objects, cpu)?,
            Tensor::from_vec(image, objects, cpu)?,
        );
        Ok(Batch { images: Tensor::from_vec(pixels, (count as usize, SIZE, SIZE, 3), cpu)?, truth })
    }
}

/// A run, so far as it is training.
pub struct Trained {
    pub model: Model,
    pub losses: Losses,
    /// Of each step.
    pub history: Vec<f32>,
    pub scale: LossScale,
    /// CPU time of a step, and of assignment and losses with their gradients in it.
    pub step_ms: f64,
    pub loss_ms: f64,
}

/// Trains; `see` is told of each step, and its loss.
pub fn train(settings: &Settings, mut see: impl FnMut(usize, f32)) -> Result<Trained> {
    settings.check()?;
    let losses = Losses::new(settings)?;
    let model = Model::new(settings.seed.into(), losses.head().box_channels(), losses.has_branch())?;
    let [matrices, vectors] = model.parameters();
    let weights: Vec<Var> = matrices.iter().chain(&vectors).cloned().collect();
    let mut optimizers =
        [optimizer(settings, matrices, settings.weight_decay)?, optimizer(settings, vectors, 0.0)?];
    let mut scale = LossScale::new(settings);
    let (mut history, mut probe, clock) = (Vec::new(), Probe::new(settings), ThreadTime::now());

    for step in 0..settings.steps {
        let first = u64::from(settings.seed) * 10_000_000 + (step * settings.batch) as u64;
        let batch = Batch::new(settings.scenes, first..first + settings.batch as u64)?;
        let targets = losses.assign(&batch.truth, settings.batch)?;
        let outputs = model.forward(&batch.images)?;

        let report = Report::new();
        let loss = total(settings, &losses, &outputs, targets, &report)?;
        let scaled_by = scale.at(step);
        let mut gradients = (&loss * scaled_by)?.backward()?;

        let norm = norm(&gradients, &weights)? / scaled_by;
        let overflow = report.found_inf(&Device::Cpu)?.to_vec1::<f32>()?[0] != 0.0 || !norm.is_finite();
        if scale.go_on(overflow) {
            let factor = (settings.max_norm / norm).min(1.0) / scaled_by;
            multiply(&mut gradients, &weights, factor)?;
            for optimizer in &mut optimizers {
                optimizer.set_learning_rate(learning_rate(settings, step));
                optimizer.step(&gradients)?;
            }
        }
        history.push(loss.to_scalar()?);
        see(step, history[step]);
        probe.look(step, &losses, &batch.truth, &outputs)?;
    }
    let step_ms = (ms(&clock) - probe.all) / settings.steps as f64;
    Ok(Trained { model, losses, history, scale, step_ms, loss_ms: probe.ms() })
}

/// The loss, with gradient.
fn total(
    settings: &Settings,
    losses: &Losses,
    outputs: &[Outputs],
    targets: Vec<Targets>,
    report: &Report,
) -> Result<Tensor> {
    match settings.losses {
        Operations::Gfocal => losses.forward(outputs, targets, report),
        Operations::Candle => plain::head(&losses.levels(outputs, targets)?, settings.bins),
    }
}

fn optimizer(settings: &Settings, weights: Vec<Var>, weight_decay: f64) -> Result<AdamW> {
    let [beta1, beta2] = settings.betas;
    AdamW::new(weights, ParamsAdamW { beta1, beta2, weight_decay, ..ParamsAdamW::default() })
}

fn learning_rate(settings: &Settings, step: usize) -> f64 {
    let part = |of: usize, all: usize| of as f64 / all.max(1) as f64;
    let rise = part(step + 1, settings.warm_up).min(1.0);
    let fall = part(step.saturating_sub(settings.warm_up), settings.steps.saturating_sub(settings.warm_up));
    settings.learning_rate * rise * (1.0 + (std::f64::consts::PI * fall).cos()) / 2.0
}

/// Length of the gradient of all weights together.
fn norm(gradients: &GradStore, weights: &[Var]) -> Result<f64> {
    let of = weights.iter().filter_map(|weight| gradients.get(weight));
    let squares = of.map(|gradient| Ok(f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?)));
    Ok(squares.sum::<Result<f64>>()?.sqrt())
}

fn multiply(gradients: &mut GradStore, weights: &[Var], factor: f64) -> Result<()> {
    for weight in weights {
        if let Some(gradient) = gradients.remove(weight) {
            gradients.insert(weight, (gradient * factor)?);
        }
    }
    Ok(())
}

/// What the loss is multiplied by, so that small gradients are not lost in 16 bits.
pub struct LossScale {
    pub value: f64,
    /// Steps that were skipped.
    pub skipped: Vec<usize>,
    step: usize,
    good: usize,
    period: usize,
    is_fixed: bool,
    overflow_at: Option<usize>,
}

impl LossScale {
    fn new(settings: &Settings) -> LossScale {
        let is_fixed = settings.dtype == Storage::F32;
        LossScale {
            value: if is_fixed { 1.0 } else { settings.loss_scale },
            skipped: Vec::new(),
            step: 0,
            good: 0,
            period: settings.loss_scale_steps,
            is_fixed,
            overflow_at: settings.overflow_at,
        }
    }

    fn at(&mut self, step: usize) -> f64 {
        self.step = step;
        // Far beyond what f16 holds, but not f32.
        if self.overflow_at == Some(step) { self.value * 2f64.powi(40) } else { self.value }
    }

    /// Whether the step is to be made.
    fn go_on(&mut self, overflow: bool) -> bool {
        self.good = if overflow { 0 } else { self.good + 1 };
        if overflow {
            self.skipped.push(self.step);
        }
        if overflow && !self.is_fixed {
            self.value /= 2.0;
        } else if self.good == self.period && !self.is_fixed {
            (self.value, self.good) = (self.value * 2.0, 0);
        }
        !overflow
    }
}

/// Times assignment and losses with their gradients now and then, on copies of a step's outputs.
struct Probe<'a> {
    settings: &'a Settings,
    times: Vec<f64>,
    all: f64,
}

/// How often in a run.
const PROBES: usize = 10;

impl<'a> Probe<'a> {
    fn new(settings: &'a Settings) -> Probe<'a> {
        Probe { settings, times: Vec::new(), all: 0.0 }
    }

    fn look(&mut self, step: usize, losses: &Losses, truth: &GroundTruth, outputs: &[Outputs]) -> Result<()> {
        let period = self.settings.steps.div_ceil(PROBES);
        if step % period != period / 2 {
            return Ok(());
        }
        let clock = ThreadTime::now();
        let leaves = outputs.iter().map(Outputs::leaves).collect::<Result<Vec<_>>>()?;
        self.times.push(loss_ms(self.settings, losses, truth, &leaves)?);
        self.all += ms(&clock);
        Ok(())
    }

    fn ms(&self) -> f64 {
        self.times.iter().sum::<f64>() / self.times.len().max(1) as f64
    }
}

/// CPU time of assignment and losses with their gradients, once.
pub fn loss_ms(
    settings: &Settings,
    losses: &Losses,
    truth: &GroundTruth,
    outputs: &[Outputs],
) -> Result<f64> {
    let clock = ThreadTime::now();
    let targets = losses.assign(truth, settings.batch)?;
    total(settings, losses, outputs, targets, &Report::new())?.backward()?;
    Ok(ms(&clock))
}

/// Milliseconds that this thread has had a core for since: on a busy machine the time of day says nothing.
pub fn ms(clock: &ThreadTime) -> f64 {
    clock.elapsed().as_secs_f64() * 1e3
}
