//! Generalized Focal Loss for candle.
