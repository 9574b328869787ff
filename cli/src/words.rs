//! Words: numbers of things, and the library's errors in terms of this command's options and tensors.

use gfocal::{Error, ErrorKind};

/// `1 box`, `2 boxes`.
pub fn count(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// An error of the library, for which callers in Rust read of fields and methods.
pub fn of(error: &Error) -> String {
    match error {
        Error::InvalidOption { option, value, rule } => {
            format!("{} is {value}, it must be {rule}", option_of(option))
        }
        Error::Columns { shape, axis, columns, minimum, maximum } => {
            let one = match *axis {
                "classes" => "class",
                "bins" => "bin",
                other => other,
            };
            let columns = count(*columns, one, axis);
            format!("logits {shape:?} has {columns}, it must have {minimum} to {maximum}")
        }
        Error::LevelCount { actual, maximum } => {
            format!("there are {}, and at most {maximum} can be taken", count(*actual, "level", "levels"))
        }
        Error::NoQuality { level } => format!(
            "level{level}.quality is missing, from which this head takes the quality of positives; give it, or \
             --quality iou"
        ),
        Error::NoBoxScores { level } => format!(
            "level{level}.box_scores is missing, from which --box-weight given takes the weights of boxes"
        ),
        Error::NoStride { level } => format!(
            "the anchor points of level {level} are not on a grid, which --center-sampling needs; leave it out, or \
             give --offset"
        ),
        other => other.to_string(),
    }
}

/// Whether another device would refuse it as well.
pub fn is_mistake(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Shape | ErrorKind::Option)
}

/// What the user gives for an option of the library.
fn option_of(option: &str) -> &str {
    match option {
        "beta" => "--beta",
        "alpha" => "--alpha",
        "target_eps" => "--target-eps",
        "grad_scale" => "--grad-scale",
        "loss_weight" => "a loss weight",
        "iou_weight" => "--iou-weight",
        "topk" => "--topk",
        "ignore_iof" => "--ignore-iof",
        "bins" => "the number of bins of the box logits",
        "stride" => "a stride",
        "the anchors' size" => "--anchor-scale times a stride",
        "offset" => "--offset",
        "the radius" => "--center-sampling",
        "fallback" => "--fallback",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_and_many() {
        assert_eq!([0, 1, 2].map(|n| count(n, "box", "boxes")), ["0 boxes", "1 box", "2 boxes"]);
    }

    #[test]
    fn no_field_of_the_library_is_named() {
        let option = Error::InvalidOption { option: "target_eps", value: 4.0, rule: "at most 3" };
        assert_eq!(of(&option), "--target-eps is 4, it must be at most 3");
        let columns = Error::Columns { shape: [2, 1], axis: "bins", columns: 1, minimum: 2, maximum: 9 };
        assert_eq!(of(&columns), "logits [2, 1] has 1 bin, it must have 2 to 9");
        let levels = Error::LevelCount { actual: 9, maximum: 8 };
        assert_eq!(of(&levels), "there are 9 levels, and at most 8 can be taken");
        for error in [Error::NoQuality { level: 0 }, Error::NoBoxScores { level: 0 }] {
            assert!(!of(&error).contains("Targets") && is_mistake(&error));
        }
    }
}
