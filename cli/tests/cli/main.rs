//! The `gfocal` command from outside: files in, table, JSON and files out.

mod assign;
mod bench;
mod cuda;
mod decode;
mod formula;
mod grads;
mod head;
mod head_options;
mod info;
#[cfg(unix)]
mod kit;
mod losses;
mod mistakes;
mod notes;
mod options;
mod output;
mod qfl_options;
mod raw;
mod reports;
mod sample;
mod support;
mod troubles;
