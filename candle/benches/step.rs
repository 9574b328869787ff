//! What the losses of a training step cost, beside the same formula in candle's operations:
//! `cargo bench --profile dev` (which has opt-level 3 here, and no need to build candle once more).
//!
//! CPU time of all threads and time on the wall, medians. `RAYON_NUM_THREADS=1` makes it one thread; the CPU time then
//! is hardly affected by what else the machine does.

use std::fs;
use std::hint::black_box;
use std::time::Instant;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use gfocal_candle::{
    AnchorGrid, Atss, BoxCoding, BoxLevel, GroundTruth, HeadLevel, HeadLoss, Points, QflOptions,
    QualityFocalLoss, Targets, assign, decode, head, qfl,
};

const ANCHORS: usize = 8400;
const CLASSES: usize = 80;
const IMAGES: usize = 4;

/// Height and width, and the stride, of the levels of 640 × 640 pixels.
const SIZES: [(usize, f64); 3] = [(80, 8.0), (40, 16.0), (20, 32.0)];

fn main() -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{threads} cores; milliseconds: CPU time of all threads, and on the wall");
    of_qfl()?;
    of_head()?;
    of_assignment()
}

/// CPU time of all threads so far in milliseconds. NaN where the system does not say.
fn cpu_time() -> f64 {
    let of_thread = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    let tasks = fs::read_dir("/proc/self/task");
    tasks.map_or(f64::NAN, |tasks| tasks.flatten().filter_map(of_thread).sum::<f64>() / 1e6)
}

fn measure(what: &str, mut run: impl FnMut() -> Result<()>) -> Result<()> {
    (0..3).try_for_each(|_| run())?;
    let (start, mut cpu, mut wall) = (Instant::now(), Vec::new(), Vec::new());
    while cpu.len() < 11 || start.elapsed().as_secs_f64() < 1.0 {
        let (began, cpu_before) = (Instant::now(), cpu_time());
        run()?;
        wall.push(1e3 * began.elapsed().as_secs_f64());
        cpu.push(cpu_time() - cpu_before);
    }
    let [cpu, wall] = [cpu, wall].map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    println!("{what:<52}{cpu:>10.3}{wall:>10.3}");
    Ok(())
}

fn logits(shape: &[usize]) -> Result<Var> {
    Var::from_tensor(&Tensor::randn(-3f32, 2.0, shape, &Device::Cpu)?)
}

fn of_qfl() -> Result<()> {
    let device = &Device::Cpu;
    let logits = logits(&[ANCHORS, CLASSES])?;
    // Every 50th anchor is a positive.
    let label = |row: usize| if row.is_multiple_of(50) { (row % CLASSES) as i64 } else { CLASSES as i64 };
    let labels = Tensor::from_iter((0..ANCHORS).map(label), device)?;
    let quality = Tensor::rand(0f32, 1.0, ANCHORS, device)?;
    let (loss, options) = (QualityFocalLoss::default(), QflOptions::default());
    let ours = || qfl(&loss, &logits, &labels, &quality, &options);
    measure("QFL 8400 x 80, forward", || ours().map(|loss| drop(black_box(loss))))?;
    measure("QFL 8400 x 80, forward and backward", || drop_all(ours()?))?;

    let columns = Tensor::arange(0, CLASSES as i64, device)?;
    let is_label = labels.unsqueeze(1)?.broadcast_eq(&columns)?.to_dtype(DType::F32)?;
    let y = is_label.broadcast_mul(&quality.unsqueeze(1)?)?;
    let plain = || {
        let distance = (&y - (logits.neg()?.exp()? + 1.0)?.recip()?)?;
        let softplus = (logits.relu()? + (logits.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
        (distance.sqr()? * (softplus - (logits.as_tensor() * &y)?)?)?.sum(D::Minus1)?.mean_all()
    };
    let (ours, expected) = (ours()?.to_scalar::<f32>()?, plain()?.to_scalar::<f32>()?);
    assert!((ours - expected).abs() <= 1e-4 * expected, "{ours} is not {expected}");
    measure("the same in candle's operations, forward", || plain().map(|loss| drop(black_box(loss))))?;
    measure("the same in candle's operations, both", || drop_all(plain()?))
}

fn drop_all(loss: Tensor) -> Result<()> {
    drop(black_box(loss.backward()?));
    Ok(())
}

fn grids() -> [AnchorGrid; 3] {
    SIZES.map(|(side, stride)| AnchorGrid::new(side, side, stride as f32).with_offset(0.5))
}

/// 28 boxes in 4 images.
fn truth() -> Result<GroundTruth> {
    let device = &Device::Cpu;
    let corners = (0..28).flat_map(|i| {
        let (x, y, size) = ((i * 83 % 500) as f32, (i * 59 % 480) as f32, (20 + i * 37 % 120) as f32);
        [x, y, x + size, y + size]
    });
    let labels = Tensor::from_iter((0..28i64).map(|i| i * 11 % CLASSES as i64), device)?;
    let images = Tensor::from_iter((0..28i64).map(|i| i % IMAGES as i64), device)?;
    Ok(GroundTruth::new(Tensor::from_iter(corners, device)?.reshape((28, 4))?, labels, images))
}

fn levels(targets: &[Targets], channels_last: bool) -> Result<Vec<HeadLevel>> {
    let mut levels = Vec::new();
    for ((side, stride), targets) in SIZES.into_iter().zip(targets) {
        let stored = |channels: usize| {
            if channels_last {
                logits(&[IMAGES, side, side, channels])?.permute((0, 3, 1, 2))
            } else {
                Ok(logits(&[IMAGES, channels, side, side])?.as_tensor().clone())
            }
        };
        levels.push(HeadLevel {
            cls: stored(CLASSES)?,
            boxes: stored(4 * 17)?,
            stride,
            points: Points::Grid { offset: 0.5 },
            targets: targets.clone(),
        });
    }
    Ok(levels)
}

fn of_head() -> Result<()> {
    let targets = assign(Atss::default(), &grids(), &truth()?, IMAGES, CLASSES)?.levels;
    let loss = HeadLoss::mmdetection();
    for (name, channels_last) in [("NCHW", false), ("channels last", true)] {
        let levels = levels(&targets, channels_last)?;
        measure(&format!("head, 4 images, {name}, forward"), || {
            head(&loss, &levels).map(|output| drop(black_box(output)))
        })?;
        measure(&format!("head, 4 images, {name}, forward and backward"), || {
            drop_all(head(&loss, &levels)?.loss)
        })?;
        let levels: Vec<_> = levels.iter().map(BoxLevel::from).collect();
        measure(&format!("decoding, 4 images, {name}"), || {
            decode(BoxCoding::Bins(17), &levels).map(|boxes| drop(black_box(boxes)))
        })?;
    }
    Ok(())
}

fn of_assignment() -> Result<()> {
    let (grids, truth) = (grids(), truth()?);
    measure("ATSS, 28 boxes in 4 images", || {
        assign(Atss::default(), &grids, &truth, IMAGES, CLASSES).map(|assigned| drop(black_box(assigned)))
    })
}
