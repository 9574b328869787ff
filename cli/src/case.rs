//! What a file says of itself.

use serde::Deserialize;

use crate::error::Result;
use crate::file::Input;
use crate::words::count;

/// The metadata's key `case`; what is not there is `None`.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Case {
    pub strides: Option<Vec<f64>>,
    pub reg_max: Option<usize>,
    pub num_classes: Option<usize>,
    pub image_hw: Option<[usize; 2]>,
    /// Of the anchor points, in strides.
    pub offset: Option<f64>,
    pub beta: Option<f64>,
    pub weights: Weights,
    pub atss_topk: Option<u32>,
    pub anchor_scale: Option<f64>,
    pub regress_ranges: Option<Vec<[f64; 2]>>,
    pub center_sampling: Option<bool>,
    pub center_sample_radius: Option<f64>,
}

/// Those of the losses.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Weights {
    pub qfl: Option<f64>,
    pub giou: Option<f64>,
    pub dfl: Option<f64>,
}

impl Case {
    pub fn read(input: &Input) -> Result<Case> {
        let Some(text) = input.metadata("case")? else { return Ok(Case::default()) };
        serde_json::from_str(&text)
            .map_err(|error| input.head(format!("the metadata's key case is not what it must be: {error}")))
    }

    /// The strides: those given, else those told here; one for each level, if it is known how many there are.
    pub fn strides(&self, input: &Input, given: &[f64], levels: Option<usize>) -> Result<Vec<f64>> {
        let strides = match (given, &self.strides) {
            ([], Some(strides)) => strides,
            ([], None) => return Err(input.head("it does not tell the strides; give --strides")),
            (given, _) => given,
        };
        let levels = levels.unwrap_or(strides.len());
        if strides.len() == levels {
            return Ok(strides.to_vec());
        }
        let levels = count(levels, "level", "levels");
        let strides = match strides.len() {
            1 => "there is 1 stride".to_owned(),
            strides => format!("there are {strides} strides"),
        };
        Err(input.head(format!("it has {levels}, and {strides}")))
    }
}
