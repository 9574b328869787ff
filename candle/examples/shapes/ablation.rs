//! Arms × seeds, as many runs at once as there are cores, and the table that comes of them.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use candle_core::{Error, Result, bail};
use clap::Args;
use indicatif::MultiProgress;

use super::run::{Outcome, run};
use super::scenes::Scenes;
use super::train::{Arm, Assignment, Settings, Storage, name};
use super::{check_writable, of_file};

#[derive(Args)]
pub struct Ablation {
    /// Seeds 1 to N.
    #[arg(long, default_value_t = 4)]
    seeds: u32,
    /// Steps of 8 images.
    #[arg(long, default_value_t = Settings::default().steps)]
    steps: usize,
    /// One of them or, with a comma, both.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "atss")]
    assigner: Vec<Assignment>,
    /// Any of base, dfl, qfl, both, and the controls base-weighted and base-iou.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "base,dfl,qfl,both")]
    arms: Vec<Arm>,
    #[arg(long, value_enum, default_value = "plain")]
    scenes: Scenes,
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Storage,
    /// Runs at once; each takes a thread. As many as there are cores, if not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Where all runs go, as an array of objects.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Ablation {
    pub fn run(&self) -> Result<()> {
        if self.seeds == 0 || self.jobs == Some(0) {
            bail!(
                "--seeds {}{}: there must be 1 or more",
                self.seeds,
                self.jobs.map_or("", |_| ", --jobs 0")
            );
        }
        self.json.as_deref().map_or(Ok(()), check_writable)?;
        let settings: Vec<Settings> = self.settings();
        for settings in &settings {
            settings.check()?;
        }
        let all = all_of(&settings, self.jobs)?;
        for &assigner in &self.assigner {
            print!("{}", table(&all, assigner, &self.arms));
        }
        self.json.as_ref().map_or(Ok(()), |path| save(path, &all))
    }

    /// Seed by seed, so that what is done first can be compared.
    fn settings(&self) -> Vec<Settings> {
        let mut all = Vec::new();
        for &assigner in &self.assigner {
            for seed in 1..=self.seeds {
                all.extend(self.arms.iter().map(|&arm| Settings {
                    arm,
                    assigner,
                    seed,
                    steps: self.steps,
                    scenes: self.scenes,
                    dtype: self.dtype,
                    ..Settings::default()
                }));
            }
        }
        all
    }
}

fn save(path: &PathBuf, all: &[Outcome]) -> Result<()> {
    let json = serde_json::to_string_pretty(all).map_err(Error::wrap)?;
    fs::write(path, json + "\n").map_err(|error| of_file(path, error))
}

/// The outcomes, in the order of the settings.
fn all_of(settings: &[Settings], jobs: Option<usize>) -> Result<Vec<Outcome>> {
    let jobs = jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let (next, stop, bars) = (AtomicUsize::new(0), AtomicBool::new(false), MultiProgress::new());
    let done: Vec<Mutex<Option<Result<Outcome>>>> = settings.iter().map(|_| Mutex::new(None)).collect();
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(settings) = settings.get(number) else { break };
            let bar = bars.add(super::bar(settings.steps));
            let outcome = run(settings, &bar).map(|(outcome, _)| outcome);
            if bar.is_hidden()
                && let Ok(Outcome { quality, run_s, .. }) = &outcome
            {
                let Settings { arm, assigner, seed, .. } = settings;
                let (arm, assigner) = (name(*arm), name(*assigner));
                eprintln!("{arm} {assigner} {seed}: AP {:.2}, {run_s:.0} s of CPU time", quality.ap);
            }
            stop.fetch_or(outcome.is_err(), Ordering::Relaxed);
            *done[number].lock().expect("no panic in between") = Some(outcome);
        }
    };
    thread::scope(|scope| (0..jobs).for_each(|_| drop(scope.spawn(work))));
    let outcomes = done.into_iter().filter_map(|outcome| outcome.into_inner().expect("no panic in between"));
    outcomes.collect()
}

/// Mean, deviation, standard error of the mean; of one number there are no deviations.
fn moments(all: &[f64]) -> [f64; 3] {
    let count = all.len() as f64;
    let mean = all.iter().sum::<f64>() / count;
    let deviation = (all.iter().map(|of| (of - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt();
    [mean, deviation, deviation / count.sqrt()]
}

/// With its deviation or error, if there is one.
fn beside(number: String, error: f64) -> String {
    if error.is_nan() { number } else { format!("{number} ± {error:.1}") }
}

/// A table of an assignment, in Markdown: arms, and what each gains over the base and over the arm before, seed by
/// seed.
pub fn table(all: &[Outcome], assigner: Assignment, arms: &[Arm]) -> String {
    let of = |arm: Arm| -> Vec<&Outcome> {
        all.iter().filter(|of| of.settings.assigner == assigner && of.settings.arm == arm).collect()
    };
    let mean = |of: &[&Outcome], what: &dyn Fn(&Outcome) -> f64| {
        of.iter().map(|of| what(of)).sum::<f64>() / of.len().max(1) as f64
    };
    let gain = |arm: Arm, over: Option<Arm>| {
        let Some(over) = over.filter(|&over| over != arm) else { return "–".to_owned() };
        let before = of(over);
        let pairs = of(arm).into_iter().filter_map(|outcome| {
            let same = before.iter().find(|other| other.settings.seed == outcome.settings.seed)?;
            Some(outcome.quality.ap - same.quality.ap)
        });
        let [mean, _, error] = moments(&pairs.collect::<Vec<_>>());
        beside(format!("{mean:+.1}"), error)
    };
    let mut text = format!(
        "\n{}; AP ± deviation between seeds, gains ± standard error\n\n\
         | arm | AP by seed | AP | AP50 | AP75 | AP90 | over {} | over the one before | score and IoU | step | losses |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        name(assigner),
        arms.first().map_or_else(String::new, |&arm| name(arm)),
    );
    for (number, &arm) in arms.iter().enumerate() {
        let all = of(arm);
        let aps: Vec<f64> = all.iter().map(|of| of.quality.ap).collect();
        let [ap, deviation, _] = moments(&aps);
        let seeds: Vec<String> = aps.iter().map(|ap| format!("{ap:.1}")).collect();
        text += &format!(
            "| {} | {} | {} | {:.1} | {:.1} | {:.1} | {} | {} | {:.2} | {:.1} ms | {:.2} ms |\n",
            name(arm),
            seeds.join(" "),
            beside(format!("{ap:.1}"), deviation),
            mean(&all, &|of| of.quality.ap50),
            mean(&all, &|of| of.quality.ap75),
            mean(&all, &|of| of.quality.ap90),
            gain(arm, arms.first().copied()),
            gain(arm, number.checked_sub(1).map(|before| arms[before])),
            mean(&all, &|of| of.quality.correlation),
            mean(&all, &|of| of.step_ms),
            mean(&all, &|of| of.loss_ms),
        );
    }
    text
}
