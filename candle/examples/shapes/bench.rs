//! The share of assignment and losses in a step, by gfocal and by the same formulas in candle's operations.

use candle_core::Result;
use cpu_time::ThreadTime;
use gfocal_candle::gfocal::cpu::Pool;

use super::losses::Losses;
use super::model::{Model, Outputs};
use super::train::{Arm, Batch, Operations, Settings, loss_ms, ms, train};

/// Steps that are timed, and calls of the losses.
const STEPS: usize = 60;
const CALLS: usize = 50;

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

pub fn bench(settings: &Settings) -> Result<()> {
    Pool::new(1).enter(|| {
        println!("arm both, {} images a step, one thread, CPU time", settings.batch);
        println!("losses    assignment and losses, ms    whole step, ms    share");
        let mut steps = [0.0; 2];
        for (number, operations) in [Operations::Gfocal, Operations::Candle].into_iter().enumerate() {
            let settings = Settings { arm: Arm::Both, losses: operations, steps: STEPS, ..settings.clone() };
            let losses = Losses::new(&settings)?;
            let step = train(&settings, |_, _| ())?.step_ms;
            let model = Model::new(settings.seed.into(), losses.head().box_channels(), false)?;
            let batch = Batch::new(settings.scenes, 0..settings.batch as u64)?;
            let leaves =
                model.forward(&batch.images)?.iter().map(Outputs::leaves).collect::<Result<Vec<_>>>()?;
            let once = |_| loss_ms(&settings, &losses, &batch.truth, &leaves);
            let ms = median((0..CALLS).map(once).collect::<Result<_>>()?);
            steps[number] = step;
            let name = super::train::name(operations);
            println!("{name:<10}{ms:>20.2}{step:>22.1}{:>12.1} %", 100.0 * ms / step);
        }
        let clock = ThreadTime::now();
        Batch::new(settings.scenes, 0..settings.batch as u64)?;
        println!("Of a step the scenes take {:.1} ms.", ms(&clock));
        Ok(())
    })
}
