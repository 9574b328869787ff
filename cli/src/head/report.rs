//! What is told of a head, in JSON and in a table.

use std::fmt::Write;

use serde::Serialize;

use super::args::Profile;
use super::{Outcome, Scene};
use crate::device::Device;
use crate::report::{Number, StatusReport};
use crate::table::{number, status, table};

/// The losses of a head.
#[derive(Debug, Serialize)]
pub struct HeadReport {
    op: &'static str,
    device: String,
    dtype: &'static str,
    profile: Profile,
    assigned: bool,
    batch: usize,
    classes: usize,
    bins: usize,
    grad_scale: f64,
    /// The sum of the three.
    loss: Number,
    loss_cls: Number,
    loss_bbox: Number,
    loss_dfl: Number,
    /// As the normalisers count them.
    num_pos: Number,
    box_weight_sum: Number,
    levels: Vec<LevelReport>,
    status: StatusReport,
}

/// Those of a level.
#[derive(Debug, Serialize)]
struct LevelReport {
    stride: f64,
    height: usize,
    width: usize,
    positives: usize,
    loss_cls: Number,
    loss_bbox: Number,
    loss_dfl: Number,
    grad_cls_norm: Number,
    grad_box_norm: Number,
}

impl HeadReport {
    pub fn new(
        scene: &Scene,
        device: &Device,
        assigned: bool,
        outcome: &Outcome,
        grad_scale: f64,
    ) -> HeadReport {
        let losses: Vec<f64> = outcome.losses.iter().collect();
        let (losses, _) = losses.as_chunks::<3>();
        let levels: Vec<LevelReport> = (scene.levels.iter().zip(losses).enumerate())
            .map(|(i, (level, &losses))| {
                let [loss_cls, loss_bbox, loss_dfl] = losses.map(Number);
                let [grad_cls_norm, grad_box_norm] =
                    outcome.gradients[i].each_ref().map(|gradient| Number(gradient.norm()));
                LevelReport {
                    stride: level.stride,
                    height: level.height,
                    width: level.width,
                    positives: outcome.targets[i].positives(&scene.head.qfl(), scene.classes),
                    loss_cls,
                    loss_bbox,
                    loss_dfl,
                    grad_cls_norm,
                    grad_box_norm,
                }
            })
            .collect();
        let total = |loss: usize| Number(losses.iter().fold(0.0, |sum, losses| sum + losses[loss]));
        let [loss_cls, loss_bbox, loss_dfl] = [0, 1, 2].map(total);
        HeadReport {
            op: "head",
            device: device.name(),
            dtype: scene.dtype.name(),
            profile: scene.profile,
            assigned,
            batch: scene.batch,
            classes: scene.classes,
            bins: scene.head.bins(),
            grad_scale,
            loss: Number(loss_cls.0 + loss_bbox.0 + loss_dfl.0),
            loss_cls,
            loss_bbox,
            loss_dfl,
            num_pos: Number(outcome.normalisers.positives),
            box_weight_sum: Number(outcome.normalisers.box_weights),
            levels,
            status: outcome.status.into(),
        }
    }

    pub fn table(&self) -> String {
        let header = ["stride", "positions", "positives", "cls", "bbox", "dfl", "|grad cls|", "|grad box|"];
        let mut rows = vec![header.map(str::to_owned)];
        for level in &self.levels {
            rows.push([
                number(level.stride),
                format!("{}x{}", level.height, level.width),
                level.positives.to_string(),
                number(level.loss_cls.0),
                number(level.loss_bbox.0),
                number(level.loss_dfl.0),
                number(level.grad_cls_norm.0),
                number(level.grad_box_norm.0),
            ]);
        }
        let positives: usize = self.levels.iter().map(|level| level.positives).sum();
        rows.push([
            "sum".to_owned(),
            String::new(),
            positives.to_string(),
            number(self.loss_cls.0),
            number(self.loss_bbox.0),
            number(self.loss_dfl.0),
            String::new(),
            String::new(),
        ]);
        let mut text = format!(
            "{} on {}: batch {}, {} classes, {} bins, {} profile{}\n\n",
            self.dtype,
            self.device,
            self.batch,
            self.classes,
            self.bins,
            self.profile.name(),
            if self.assigned { ", targets assigned by ATSS" } else { "" }
        );
        text += &table(&rows);
        let _ = writeln!(
            text,
            "\nloss {}, over {} positives and box weights of {}",
            number(self.loss.0),
            number(self.num_pos.0),
            number(self.box_weight_sum.0)
        );
        text + &status("", &self.status)
    }
}
