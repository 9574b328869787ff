//! Standard output and standard error. `println!` panics when the reader of a pipe has gone; here
//! that is no error at all.

use std::io::{self, ErrorKind, Write};

use clap::error::ErrorKind as Usage;

use crate::error::{Error, Result};

/// Writes to standard output. A reader that has gone (`gfocal … | head -1`) has seen enough.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::Stdout(error)),
        _ => Ok(()),
    }
}

/// Writes what was asked for, and when that is done, what else there is to tell.
pub fn finish<const N: usize>(text: &str, notes: [Option<String>; N]) -> Result<()> {
    print(text)?;
    notes.iter().flatten().for_each(|text| note(text));
    Ok(())
}

/// Writes one line to standard error, whatever is in the text (a file's name may hold a newline).
pub fn note(text: &str) {
    let mut line = String::from("gfocal: ");
    for character in text.chars() {
        if character.is_control() { line.extend(character.escape_default()) } else { line.push(character) }
    }
    line.push('\n');
    // If standard error is closed there is nobody to tell.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Prints what clap has to say. True for what was asked for (`--help`, `--version`), false for a
/// mistake, which is told in one line as all others are.
pub fn usage(error: &clap::Error) -> bool {
    match error.kind() {
        Usage::DisplayHelp | Usage::DisplayVersion => {
            let _ = error.print();
            true
        }
        Usage::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            false
        }
        _ => {
            note(&one_line(&error.to_string()));
            false
        }
    }
}

/// clap's paragraphs as one line, without the summary of the usage.
fn one_line(text: &str) -> String {
    let paragraphs =
        text.split("\n\n").filter(|paragraph| !paragraph.starts_with("Usage:")).map(|paragraph| {
            let words: Vec<&str> = paragraph.split_whitespace().collect();
            words.join(" ").trim_end_matches('.').replacen("For more", "for more", 1)
        });
    paragraphs.collect::<Vec<_>>().join("; ").trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn a_mistake_is_told_in_one_line() {
        let text = "error: the following required arguments were not provided:\n  <FILE>\n\n\
                    Usage: gfocal qfl <FILE>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            one_line(text),
            "the following required arguments were not provided: <FILE>; for more information, try '--help'"
        );
    }
}
