//! Where the kernels of this build come from, in words.

use std::collections::BTreeSet;
use std::fmt;

use super::images::{self, Code, Origin};

/// Where the kernels of this build come from: compiled by an NVRTC that the build found, or the
/// PTX that is committed in the repository. [`Display`](fmt::Display) tells it in words.
#[derive(Clone, Copy, Debug)]
pub struct Provenance {
    built: Result<(&'static str, &'static str), &'static str>,
    committed: Option<&'static str>,
}

/// Where the kernels of this build come from.
pub fn provenance() -> Provenance {
    let (built, committed) = images::origins();
    Provenance { built, committed }
}

impl Provenance {
    /// Whether NVRTC compiled the kernels when the library was built. If not, they are the
    /// committed PTX.
    pub fn compiled_at_build_time(&self) -> bool {
        self.built.is_ok()
    }

    /// The release of the NVRTC that made the kernels that are tried first, as in `12.0.76`.
    pub fn nvrtc_release(&self) -> &'static str {
        match self.built {
            Ok((release, _)) => release,
            Err(_) => self.committed.unwrap_or("unknown"),
        }
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.built {
            Ok((release, library)) => {
                write!(
                    f,
                    "compiled at build time by NVRTC {release} ({library}): {}",
                    Summary(Origin::BuildScript)
                )?;
                match self.committed {
                    Some(release) => write!(
                        f,
                        "; second choice: committed PTX, made by NVRTC {release}: {}",
                        Summary(Origin::Committed)
                    ),
                    None => write!(f, "; no second choice: the committed PTX was out of date"),
                }
            }
            Err(why) => write!(
                f,
                "committed PTX, made by NVRTC {}: {}; nothing was compiled at build time: NVRTC \
                 was {why}",
                self.nvrtc_release(),
                Summary(Origin::Committed)
            ),
        }
    }
}

/// The languages and targets of the images of one origin.
struct Summary(Origin);

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: BTreeSet<_> = images::all()
            .filter(|image| image.origin == self.0)
            .map(|image| (language(image.code), image.compute_capability))
            .collect();
        let mut last = None;
        for (language, compute_capability) in &kinds {
            match last {
                Some(last) if last == language => write!(f, ", sm_{compute_capability}"),
                Some(_) => write!(f, ", {language} for sm_{compute_capability}"),
                None => write!(f, "{language} for sm_{compute_capability}"),
            }?;
            last = Some(language);
        }
        Ok(())
    }
}

fn language(code: Code) -> String {
    match code {
        Code::Machine(_) => "machine code".to_owned(),
        Code::Ptx((major, minor)) => format!("PTX {major}.{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_provenance_says_which_it_is() {
        let built = Provenance {
            built: Ok(("13.0.88", "/usr/local/cuda/lib64/libnvrtc.so.13")),
            committed: Some("12.0.76"),
        };
        let text = built.to_string();
        assert!(text.starts_with("compiled at build time by NVRTC 13.0.88 (/usr/local/cuda"));
        assert!(text.contains("second choice: committed PTX, made by NVRTC 12.0.76"));
        assert!(built.compiled_at_build_time());
        assert_eq!(built.nvrtc_release(), "13.0.88");

        let committed = Provenance { built: Err("not found"), committed: Some("12.0.76") };
        let text = committed.to_string();
        assert!(text.starts_with("committed PTX, made by NVRTC 12.0.76"));
        assert!(text.ends_with("nothing was compiled at build time: NVRTC was not found"));
        assert!(!committed.compiled_at_build_time());
        assert_eq!(committed.nvrtc_release(), "12.0.76");
    }
}
