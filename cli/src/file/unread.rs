//! The tensors of a file that nothing reads, in a note.

use std::collections::BTreeMap;

/// More names than these are told by the levels that they are of.
const ONE_BY_ONE: usize = 16;

/// Names every one of them; none for none.
pub fn note(mut names: Vec<&str>) -> Option<String> {
    names.sort_unstable();
    let listed = if names.len() > ONE_BY_ONE { by_level(&names) } else { names.join(", ") };
    match names.len() {
        0 => None,
        1 => Some(format!("note: the tensor {listed} of the file is not read")),
        count => Some(format!("note: {count} tensors of the file are not read: {listed}")),
    }
}

/// `level0.labels` and `level1.labels` as `level{0,1}.labels`.
fn by_level(names: &[&str]) -> String {
    let mut levels: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for name in names {
        let (before, level, after) = split(name).unwrap_or((name, "", ""));
        levels.entry((before, after)).or_default().push(level);
    }
    let merged = levels.into_iter().map(|((before, after), mut levels)| {
        levels.sort_by_key(|level| (level.len(), *level));
        match &*levels {
            [level] => format!("{before}{level}{after}"),
            _ => format!("{before}{{{}}}{after}", levels.join(",")),
        }
    });
    merged.collect::<Vec<_>>().join(", ")
}

/// What is before, in and after the number of a name's level.
fn split(name: &str) -> Option<(&str, &str, &str)> {
    let digits = name.find("level")? + "level".len();
    let length = name[digits..].find('.')?;
    let level = &name[digits..digits + length];
    let is_number = !level.is_empty() && level.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| (&name[..digits], level, &name[digits + length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tensor_is_named() {
        assert_eq!(note(vec![]), None);
        assert_eq!(note(vec!["b"]).unwrap(), "note: the tensor b of the file is not read");
        assert_eq!(note(vec!["b", "a"]).unwrap(), "note: 2 tensors of the file are not read: a, b");
    }

    #[test]
    fn many_are_told_by_their_levels() {
        let names: Vec<String> = (0..12).map(|i| format!("level{i}.labels")).collect();
        let others = ["want.level0.grad", "want.level1.grad", "level.x", "levelx.y", "level7.alone", "gt"];
        let names = names.iter().map(String::as_str).chain(others).collect();
        let expected = "gt, level7.alone, level{0,1,2,3,4,5,6,7,8,9,10,11}.labels, level.x, levelx.y, \
                        want.level{0,1}.grad";
        assert_eq!(note(names).unwrap(), format!("note: 18 tensors of the file are not read: {expected}"));
    }
}
