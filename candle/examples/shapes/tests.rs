//! The network's operations against candle's, the losses against candle's, and short runs.

use candle_core::{Device, Result, Tensor, Var};
use gfocal_candle::Report;

use super::checkpoint::{load, save};
use super::losses::Losses;
use super::model::{Model, Outputs};
use super::nn::{GROUP, conv, norm_relu, upsample};
use super::rng::Rng;
use super::train::{Arm, Assignment, Batch, Operations, Settings, Storage, Trained, train};
use super::{detect, plain};

fn random(seed: u64, shape: &[usize]) -> Result<Var> {
    let mut rng = Rng::new(seed);
    let data = (0..shape.iter().product()).map(|_| rng.normal()).collect::<Vec<f32>>();
    Var::from_vec(data, shape, &Device::Cpu)
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// The largest difference is a small part of the largest number.
fn assert_near(got: &Tensor, want: &Tensor, limit: f32, what: &str) -> Result<()> {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (numbers(got)?, numbers(want)?);
    let largest = want.iter().fold(0.0, |most: f32, of| most.max(of.abs()));
    assert!(largest > 0.0, "{what} is nothing at all");
    for (place, (got, want)) in got.iter().zip(&want).enumerate() {
        let error = (got - want).abs() / largest;
        assert!(error <= limit, "{what}: {got} is not {want}, at {place}");
    }
    Ok(())
}

/// Results and gradients of two functions, given a gradient of random numbers.
fn compare(
    variables: &[&Var],
    ours: impl Fn() -> Result<Tensor>,
    theirs: impl Fn() -> Result<Tensor>,
    limit: f32,
) -> Result<()> {
    let (ours, theirs) = (ours()?, theirs()?);
    assert_near(&ours, &theirs, limit, "result")?;
    let upstream = random(99, ours.dims())?;
    let gradients = |of: Tensor| (of * upstream.as_tensor())?.sum_all()?.backward();
    let (ours, theirs) = (gradients(ours)?, gradients(theirs)?);
    for (number, variable) in variables.iter().enumerate() {
        let [ours, theirs] = [&ours, &theirs].map(|all| all.get(variable).expect("it has a gradient"));
        assert_near(ours, theirs, limit, &format!("gradient {number}"))?;
    }
    Ok(())
}

#[test]
fn convolutions_are_candles() -> Result<()> {
    for (size, stride, [height, width]) in
        [(3, 1, [5, 7]), (3, 2, [8, 6]), (3, 2, [7, 5]), (1, 1, [4, 3]), (1, 2, [6, 4])]
    {
        let (from, to) = (3, 5);
        let (x, w) = (random(1, &[2, height, width, from])?, random(2, &[size * size * from, to])?);
        let theirs = || {
            let kernel = w.reshape((size, size, from, to))?.permute((3, 2, 0, 1))?.contiguous()?;
            let image = x.permute((0, 3, 1, 2))?.contiguous()?;
            image.conv2d(&kernel, size / 2, stride, 1, 1)?.permute((0, 2, 3, 1))?.contiguous()
        };
        compare(&[&x, &w], || conv(&x, &w, size, stride), theirs, 2e-6)?;
    }
    Ok(())
}

#[test]
fn the_norm_is_candles() -> Result<()> {
    let (batch, height, width, channels) = (2, 3, 4, 3 * GROUP);
    let x = random(1, &[batch, height, width, channels])?;
    let (scale, shift) = (random(2, &[channels])?, random(3, &[channels])?);
    let theirs = || {
        let groups = x.reshape((batch, height * width, channels / GROUP, GROUP))?;
        let count = (height * width * GROUP) as f64;
        let sum = |of: &Tensor| of.sum_keepdim(3)?.sum_keepdim(1);
        let centred = groups.broadcast_sub(&(sum(&groups)? / count)?)?;
        let variance = (sum(&centred.sqr()?)? / count)?;
        let normal = centred.broadcast_div(&(variance + 1e-5)?.sqrt()?)?;
        normal.reshape(x.shape())?.broadcast_mul(&scale)?.broadcast_add(&shift)?.relu()
    };
    compare(&[&x, &scale, &shift], || norm_relu(&x, &scale, &shift), theirs, 5e-6)
}

#[test]
fn upsampling_is_candles() -> Result<()> {
    let x = random(1, &[2, 3, 2, 5])?;
    let theirs = || {
        x.permute((0, 3, 1, 2))?.contiguous()?.upsample_nearest2d(6, 4)?.permute((0, 2, 3, 1))?.contiguous()
    };
    compare(&[&x], || upsample(&x), theirs, 1e-6)
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    let x = random(1, &[1, 4, 4, 3])?;
    let error = |result: Result<Tensor>| result.unwrap_err().to_string();
    let weight = random(2, &[9 * 2, 5])?;
    let wrong = error(conv(&x, &weight, 3, 1));
    assert!(wrong.contains("[18, 5]") && wrong.contains("patches of 27"), "{wrong}");
    let three = random(2, &[3])?;
    let wrong = error(norm_relu(&x, &three, &three));
    assert!(wrong.contains("3 channels are not groups of 8"), "{wrong}");
    Ok(())
}

fn outputs(settings: &Settings, losses: &Losses, batch: &Batch) -> Result<Vec<Outputs>> {
    let model = Model::new(3, losses.head().box_channels(), losses.has_branch())?;
    // Of a network that has learnt nothing all boxes are alike: other weights make them differ.
    let mut rng = Rng::new(4);
    for var in model.parameters().iter().flatten() {
        let data = numbers(var)?.into_iter().map(|of| of + 0.1 * rng.normal()).collect::<Vec<_>>();
        var.set(&Tensor::from_vec(data, var.shape(), &Device::Cpu)?)?;
    }
    assert_eq!(batch.images.dim(0)?, settings.batch);
    model.forward(&batch.images)?.iter().map(Outputs::leaves).collect()
}

/// The formulas of the fused head once more, one operation at a time: the same loss and gradients.
#[test]
fn gfocals_head_is_the_formula_in_candles_operations() -> Result<()> {
    for assigner in [Assignment::Atss, Assignment::Fcos] {
        let settings = Settings { assigner, ..Settings::default() };
        let losses = Losses::new(&settings)?;
        let batch = Batch::new(settings.scenes, 0..8)?;
        let outputs = outputs(&settings, &losses, &batch)?;
        let targets = || losses.assign(&batch.truth, settings.batch);
        let ours = losses.forward(&outputs, targets()?, &Report::new())?;
        let theirs = plain::head(&losses.levels(&outputs, targets()?)?, settings.bins)?;
        let (a, b) = (ours.to_scalar::<f32>()?, theirs.to_scalar::<f32>()?);
        assert!((a - b).abs() <= 2e-6 * b, "{a} is not {b}");
        let (ours, theirs) = (ours.backward()?, theirs.backward()?);
        for (level, of) in outputs.iter().enumerate() {
            for (logits, what) in [(&of.cls, "class"), (&of.boxes, "box")] {
                let leaf = leaf(logits);
                let what = format!("{what} gradient of level {level}");
                let ours = ours.get_id(leaf).expect("the head gives all gradients");
                match theirs.get_id(leaf) {
                    Some(theirs) => assert_near(ours, theirs, 2e-5, &what)?,
                    // Without positives the plain formula does not come to the boxes.
                    None => assert!(level > 0 && numbers(ours)?.iter().all(|&of| of == 0.0), "{what}"),
                }
            }
        }
    }
    Ok(())
}

/// The variable that a view is of.
fn leaf(view: &Tensor) -> candle_core::TensorId {
    let nodes = view.sorted_nodes();
    nodes.iter().find(|node| node.is_variable()).expect("it is of a variable").id()
}

fn short(arm: Arm) -> Settings {
    Settings { arm, steps: 60, ..Settings::default() }
}

fn weights(trained: &Trained) -> Result<Vec<u32>> {
    let all = trained.model.parameters();
    let mut bits = Vec::new();
    for weight in all.iter().flatten() {
        bits.extend(numbers(weight)?.into_iter().map(f32::to_bits));
    }
    Ok(bits)
}

#[test]
fn sixty_steps_repeat_to_the_bit_and_learn() -> Result<()> {
    let [a, b] = [(); 2].map(|()| train(&short(Arm::Both), |_, _| ()));
    let (a, b) = (a?, b?);
    let bits = |of: &Trained| of.history.iter().map(|loss| loss.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&a), bits(&b));
    let all = weights(&a)?;
    assert_eq!(all, weights(&b)?);
    assert!(all.iter().all(|&bits| f32::from_bits(bits).is_finite()));
    assert!(a.history.iter().all(|loss| loss.is_finite()), "{:?}", a.history);
    let last = a.history[50..].iter().sum::<f32>() / 10.0;
    assert!(last < LOSS_AFTER_60, "{last}: {:?}", a.history);
    assert!(a.scale.skipped.is_empty());
    Ok(())
}

/// Half way from the first loss, 2.14, to what 60 steps come to, 1.63.
const LOSS_AFTER_60: f32 = 1.88;

/// All losses of all arms are finite and have gradients. (That of QFL alone is no measure: it grows with its targets.)
#[test]
fn every_arm_runs_with_both_assignments() -> Result<()> {
    for assigner in [Assignment::Atss, Assignment::Fcos] {
        for arm in [Arm::Base, Arm::Dfl, Arm::Qfl, Arm::Both, Arm::BaseWeighted, Arm::BaseIou] {
            let settings = Settings { assigner, batch: 4, ..short(arm) };
            let losses = Losses::new(&settings)?;
            let batch = Batch::new(settings.scenes, 0..4)?;
            let outputs = outputs(&settings, &losses, &batch)?;
            let loss = losses.forward(&outputs, losses.assign(&batch.truth, 4)?, &Report::new())?;
            let gradients = loss.backward()?;
            for of in &outputs[..2] {
                for logits in [Some(&of.cls), Some(&of.boxes), of.quality.as_ref()].into_iter().flatten() {
                    let gradient = numbers(gradients.get_id(leaf(logits)).expect("all have one"))?;
                    assert!(gradient.iter().all(|of| of.is_finite()), "{arm:?} {assigner:?}");
                    assert!(gradient.iter().any(|&of| of != 0.0), "{arm:?} {assigner:?}");
                }
            }
            let trained = train(&Settings { steps: 3, ..settings }, |_, _| ())?;
            assert!(trained.scale.skipped.is_empty() && trained.history.iter().all(|loss| loss.is_finite()));
        }
    }
    Ok(())
}

/// One step of 16-bit gradients overflows: it is skipped, the scale is halved, and training goes on.
#[test]
fn an_overflow_is_skipped_and_recovered_from() -> Result<()> {
    let settings = Settings { dtype: Storage::F16, steps: 30, overflow_at: Some(12), ..short(Arm::Both) };
    let planted = train(&settings, |_, _| ())?;
    assert_eq!(planted.scale.skipped, [12]);
    assert_eq!(planted.scale.value, settings.loss_scale / 2.0);
    assert!(planted.history.iter().all(|loss| loss.is_finite()), "{:?}", planted.history);
    assert!(planted.history[27..].iter().sum::<f32>() < planted.history[..3].iter().sum::<f32>());
    // Up to the overflow nothing is different, and the step was not made: the next loss is that of the weights before.
    let plain = train(&Settings { overflow_at: None, ..settings }, |_, _| ())?;
    assert!(plain.scale.skipped.is_empty());
    assert_eq!(planted.history[..=12], plain.history[..=12]);
    assert_ne!(planted.history[13], plain.history[13]);
    Ok(())
}

#[test]
fn the_scale_doubles_after_good_steps() -> Result<()> {
    let settings =
        Settings { dtype: Storage::Bf16, steps: 10, loss_scale_steps: 4, batch: 2, ..short(Arm::Both) };
    assert_eq!(train(&settings, |_, _| ())?.scale.value, 4.0 * settings.loss_scale);
    Ok(())
}

#[test]
fn a_checkpoint_gives_the_network_back() -> Result<()> {
    let settings = Settings { steps: 3, batch: 2, test_scenes: 4, ..short(Arm::Base) };
    let trained = train(&settings, |_, _| ())?;
    let path = std::env::temp_dir().join(format!("gfocal-shapes-{}.safetensors", std::process::id()));
    save(&path, &settings, &trained.model)?;
    let (again, losses, model) = load(&path)?;
    std::fs::remove_file(&path)?;
    assert_eq!(format!("{again:?}"), format!("{settings:?}"));
    let all = |losses, model| detect::detect(&settings, losses, model, 0..2);
    assert_eq!(all(&losses, &model)?.by_score, all(&trained.losses, &trained.model)?.by_score);
    let missing = load(&path).err().expect("it is gone").to_string();
    assert!(missing.contains(&path.display().to_string()), "{missing}");
    Ok(())
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let refused = |settings: Settings, part: &str| {
        let error = settings.check().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    let of = Settings::default();
    refused(Settings { steps: 0, ..of.clone() }, "--steps 0");
    refused(Settings { overflow_at: Some(3), ..of.clone() }, "f32 does not overflow");
    refused(
        Settings { overflow_at: Some(1200), dtype: Storage::F16, ..of.clone() },
        "there are steps 0 to 1199",
    );
    refused(Settings { losses: Operations::Candle, arm: Arm::Qfl, ..of }, "not of qfl");
}

/// All that a network says of sides is of objects that are there, and sums to one.
#[test]
fn sides_are_of_the_truth() -> Result<()> {
    let settings = Settings::default();
    let losses = Losses::new(&settings)?;
    let model = Model::new(1, losses.head().box_channels(), false)?;
    let all = detect::said(settings.scenes, &losses, &model, 0..16)?.expect("the arm has distributions");
    assert!(all.len() > 16 * 4 * 8, "{} sides", all.len());
    for said in &all {
        assert!((said.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert!((-0.1..=64.0 / said.stride).contains(&said.target), "{}", said.target);
        assert!(settings.scenes.scene(detect::held_out(said.scene)).objects.contains(&said.of));
    }
    Ok(())
}
