//! What is left out of NVRTC's PTX: a third of it says nothing to a driver.

use std::collections::HashMap;

/// The same program in fewer bytes: without comments but for the compiler's release, empty lines, indentation,
/// and global variables that nothing uses (NVRTC keeps every constant of a header); with short names for
/// labels, for the parameter and for arrays in shared memory, and no space behind a comma.
pub fn tidy(ptx: &str) -> String {
    let head = ptx.find(".version").unwrap_or(0);
    let (comments, code) = ptx.split_at(head);
    let release = comments.lines().filter(|line| line.contains("compilation tools"));
    let mut lines: Vec<String> = release.map(|line| line.trim_end().to_owned()).collect();
    let code: Vec<String> = code.lines().map(short_line).filter(|line| !line.is_empty()).collect();
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for word in code.iter().flat_map(|line| words(line)) {
        *uses.entry(word).or_default() += 1;
    }
    let is_used = |line: &&String| variable(line).is_none_or(|name| uses[name] > 1);
    lines.extend(code.iter().filter(is_used).cloned());
    let mut text = lines.join("\n") + "\n";
    // An array in shared memory is called after the function that it stands in, with all types.
    let mut arrays: Vec<&str> = uses.keys().copied().filter(|name| name.starts_with("_ZZ")).collect();
    arrays.sort_unstable_by_key(|name| (std::cmp::Reverse(name.len()), *name));
    for (number, name) in arrays.into_iter().enumerate() {
        text = text.replace(name, &format!("shared{number}"));
    }
    text
}

/// A line without what can be spared; nothing is left of a comment.
fn short_line(line: &str) -> String {
    let code = line.split("//").next().unwrap_or_default();
    let code = code.split_whitespace().collect::<Vec<_>>().join(" ").replace(", ", ",");
    let mut short = String::new();
    let mut rest = code.as_str();
    // `$L__BB3_12` is label 12 of the fourth function.
    while let Some((before, label)) = rest.split_once("$L__BB") {
        let after = label.trim_start_matches(|c: char| c.is_ascii_digit());
        short += before;
        short += "$L";
        rest = after.strip_prefix('_').unwrap_or(after);
    }
    short += rest;
    let parameter = words(&short).find(|word| word.ends_with("_param_0")).map(str::to_owned);
    parameter.map(|name| short.replace(&name, "args")).unwrap_or(short)
}

/// The names and numbers in a line.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '$').filter(|word| !word.is_empty())
}

/// The name of the global variable that a line declares.
fn variable(line: &str) -> Option<&str> {
    let declaration = line.strip_prefix(".global ")?.split('=').next()?;
    words(declaration.split('[').next()?).last()
}
