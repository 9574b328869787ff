//! On the CPU.

use gfocal::assign::{Anchors, GroundTruth, LevelTargets};
use gfocal::{Result, Status};

use super::{AssignedLevel, Assigner, Problem};

pub fn run(problem: &Problem) -> Result<(Vec<AssignedLevel>, Status)> {
    let boxes = problem.boxes();
    let anchors: Vec<Anchors> = (problem.places.iter().zip(&boxes))
        .map(|(place, boxes)| match place.grid(problem.scale()) {
            Some(grid) => Anchors::Grid(grid),
            None => Anchors::cpu(boxes),
        })
        .collect();
    let mut truth = GroundTruth::cpu(&problem.truth.boxes, &problem.truth.labels, &problem.truth.images);
    if let Some(weights) = &problem.truth.weights {
        truth = truth.weights(weights);
    }
    if let Some(ignore) = &problem.truth.ignore {
        truth = truth.ignore(&ignore.boxes, &ignore.images);
    }
    if let Some(sizes) = &problem.truth.valid_hw {
        truth = truth.valid_hw(sizes);
    }
    let mut levels = AssignedLevel::of(problem);
    let mut into: Vec<_> = levels.iter_mut().map(AssignedLevel::targets).collect();
    let status = match problem.assigner {
        Assigner::Atss { atss, .. } => {
            atss.cpu(&anchors, truth, problem.batch, problem.classes, &mut into)?
        }
        Assigner::Fcos(fcos) => fcos.cpu(&anchors, truth, problem.batch, problem.classes, &mut into)?,
    };
    drop(into);
    Ok((levels, status))
}

impl AssignedLevel {
    /// Nothing assigned yet.
    fn of(problem: &Problem) -> Vec<AssignedLevel> {
        let with_centerness = matches!(problem.assigner, Assigner::Fcos(_));
        let level = |anchors: usize| AssignedLevel {
            labels: vec![0; anchors],
            boxes: vec![0.0; 4 * anchors],
            label_weights: vec![0.0; anchors],
            box_weights: problem.truth.weights.as_ref().map(|_| vec![0.0; anchors]),
            centerness: with_centerness.then(|| vec![0.0; anchors]),
        };
        problem.places.iter().map(|place| level(problem.batch * place.positions())).collect()
    }

    fn targets(&mut self) -> LevelTargets<'_, gfocal::Host, i64> {
        let mut targets =
            LevelTargets::cpu(&mut self.labels, &mut self.boxes).label_weights(&mut self.label_weights);
        if let Some(weights) = &mut self.box_weights {
            targets = targets.box_weights(weights);
        }
        if let Some(centerness) = &mut self.centerness {
            targets = targets.centerness(centerness);
        }
        targets
    }
}
