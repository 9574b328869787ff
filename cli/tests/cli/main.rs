//! The `gfocal` command from outside: files in, table, JSON and files out.

mod bench;
mod cuda;
mod formula;
mod head;
mod info;
#[cfg(unix)]
mod kit;
mod losses;
mod mistakes;
mod options;
mod output;
mod sample;
mod support;
