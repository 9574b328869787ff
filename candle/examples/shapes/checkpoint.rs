//! A run's weights and settings as a safetensors file.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Result, Tensor, bail};

use super::losses::Losses;
use super::model::Model;
use super::train::Settings;
use super::{of_file, without_backtrace};

/// What the settings are called in a checkpoint, beside the weights: JSON, byte by byte.
const SETTINGS: &str = "settings";

/// Saves weights and settings.
pub fn save(path: &Path, settings: &Settings, model: &Model) -> Result<()> {
    let mut tensors = model.tensors();
    let json = serde_json::to_vec(settings).map_err(candle_core::Error::wrap)?;
    let count = json.len();
    tensors.insert(SETTINGS.to_owned(), Tensor::from_vec(json, count, &Device::Cpu)?);
    candle_core::safetensors::save(&tensors, path).map_err(|error| of_file(path, without_backtrace(error)))
}

/// Weights and settings that [`save`] has saved.
pub fn load(path: &Path) -> Result<(Settings, Losses, Model)> {
    let of_file = |error| of_file(path, without_backtrace(error));
    let tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(path, &Device::Cpu).map_err(of_file)?;
    let Some(json) = tensors.get(SETTINGS) else {
        bail!("{}: there are no settings, so it was not saved by `train --save`", path.display());
    };
    let json = json.to_vec1::<u8>().map_err(of_file)?;
    let settings: Settings =
        serde_json::from_slice(&json).map_err(candle_core::Error::wrap).map_err(of_file)?;
    let losses = Losses::new(&settings)?;
    let model = Model::new(settings.seed.into(), losses.head().box_channels(), losses.has_branch())?;
    model.load(&tensors).map_err(of_file)?;
    Ok((settings, losses, model))
}
