//! The entry points of an image, and patterns for names.

/// An entry point of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub name: &'a str,
    /// Of a block, at most.
    pub threads: u32,
}

/// Whether a text is what a pattern says, in which `*` stands for any characters.
pub fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let mut ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.any(|at| matches(rest, &text[at..]))
        }),
    }
}

/// The entry points of an image: `.visible .entry qfl_f32(` and then `.maxntid 320, 1, 1`.
pub fn entries(ptx: &str) -> Result<Vec<Entry<'_>>, String> {
    let mut found: Vec<Entry> = Vec::new();
    for line in ptx.lines() {
        if let Some((_, name)) = line.split_once(".entry ") {
            found.push(Entry { name: name.trim_end_matches(['(', ')', ' ']), threads: 0 });
        } else if let (Some(size), Some(entry)) = (line.trim().strip_prefix(".maxntid "), found.last_mut()) {
            let sizes = size.split(',').map(|size| size.trim().parse::<u32>());
            entry.threads = sizes.product::<Result<_, _>>().map_err(|error| format!("{line}: {error}"))?;
        }
    }
    match found.iter().find(|entry| entry.threads == 0) {
        Some(entry) => Err(format!("{} does not say how many threads its blocks have", entry.name)),
        None if found.is_empty() => Err("there is no kernel in it".to_owned()),
        None => Ok(found),
    }
}
